"""`unipo bench`: seconds and tokens per second of generation and update on this machine, for one model."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from tyro.conf import FlagCreatePairsOff, arg

from unipo.command.flags import JSON, parse
from unipo.command.output import json_line, line, table
from unipo.errors import ConfigError
from unipo.policy.spec import Compute
from unipo.training.bench import StepBench
from unipo.training.flops import flops_per_position, matmul_rate
from unipo.training.setup import model_path

ABOUT = """Measure this machine: real training steps (generate, score, update) with every response exactly as long as asked.

The first step warms up and is not counted; the others are shown as median and range. Utilisation (MFU) is the
arithmetic of the weights alone over the rate of a plain matrix product measured here, so it is a lower bound.

examples:
  unipo bench
  unipo bench --model Qwen/Qwen3-0.6B --prompts 4 --group 4 --max-tokens 128 --dtype bfloat16 --json"""


@dataclass(frozen=True)
class Options:
    """ """

    model: Annotated[str, arg(help="directory or Hugging Face id")] = "starter"
    prompts: Annotated[int, arg(help="prompts per step")] = 8
    group: Annotated[int, arg(help="responses per prompt")] = 8
    prompt_tokens: Annotated[int, arg(help="length of each prompt")] = 16
    max_tokens: Annotated[int, arg(help="length of each response")] = 32
    steps: Annotated[int, arg(help="steps that are counted")] = 5
    dtype: Annotated[Compute, arg(help="dtype of the arithmetic")] = "float32"
    device: Annotated[str, arg(help="auto, cpu, cuda or cuda:N")] = "auto"
    threads: Annotated[int, arg(help="threads of torch; 0 leaves them as they are")] = 0
    json: Annotated[bool, FlagCreatePairsOff, JSON] = False


def run(argv: Sequence[str]) -> int:
    options = parse(Options, argv, "unipo bench", ABOUT)
    if min(options.prompts, options.group, options.prompt_tokens, options.max_tokens, options.steps) < 1:
        raise ConfigError("--prompts, --group, --prompt-tokens, --max-tokens and --steps must all be at least 1")
    found = measure(options)
    if options.json:
        json_line(found)
    else:
        line(words(found))
    return 0


def prompt_ids(count: int, length: int) -> list[list[int]]:
    """Prompts of token ids below 32, which every vocabulary has, no two alike among the first 32."""
    return [[(i + 7 * j) % 32 for j in range(length)] for i in range(count)]


def measure(options: Options) -> dict[str, Any]:
    """Time the steps and work out the rates."""
    bench = StepBench(
        model_path(options.model),
        prompt_ids(options.prompts, options.prompt_tokens),
        options.group,
        options.max_tokens,
        options.dtype,
        1e-6,
        options.threads,
        device=options.device,
    )
    bench.step()
    timed = [bench.step() for _ in range(options.steps)]
    seconds = {name: _spread([t[f"{name}_s"] for t in timed]) for name in ("generation", "update", "step")}
    responses = options.prompts * options.group
    sampled = responses * options.max_tokens
    # The prompt of a group is forwarded once, and the last token of a response is never an input.
    positions = options.prompts * options.prompt_tokens + responses * (options.max_tokens - 1)
    flops, rate = flops_per_position(bench.policy), matmul_rate(options.dtype, bench.policy.device.type)
    return {
        "model": options.model,
        "parameters": sum(p.numel() for p in bench.policy.model.parameters()),
        "device": str(bench.policy.device),
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "prompts": options.prompts,
        "group": options.group,
        "prompt_tokens": options.prompt_tokens,
        "max_tokens": options.max_tokens,
        "steps": options.steps,
        "seconds": seconds,
        "sampled_tokens_per_second": sampled / seconds["generation"]["median"],
        "trained_positions_per_second": positions / seconds["update"]["median"],
        "matmul_flops": rate,
        "mfu_update": positions * flops / seconds["update"]["median"] / rate,
        "mfu_generation": sampled * flops / 3 / seconds["generation"]["median"] / rate,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def words(found: dict[str, Any]) -> str:
    """The measurement for people."""
    head = (
        f"{found['model']} ({found['parameters'] / 1e6:.1f} M parameters) on {found['device']}, {found['threads']} "
        f"threads, {found['dtype']}\n{found['prompts']} prompts of {found['prompt_tokens']} tokens x {found['group']} "
        f"responses of {found['max_tokens']}; {found['steps']} steps\n"
    )
    rates = {
        "generation": f"{found['sampled_tokens_per_second']:,.0f} sampled tokens/s",
        "update": f"{found['trained_positions_per_second']:,.0f} positions/s",
        "step": "",
    }
    shares = {"generation": found["mfu_generation"], "update": found["mfu_update"], "step": None}
    rows = [
        (
            name,
            f"{s['median']:.3f}",
            f"{s['low']:.3f} to {s['high']:.3f}",
            "" if shares[name] is None else f"{100 * shares[name]:.1f} %",
            rates[name],
        )
        for name, s in found["seconds"].items()
    ]
    return (
        f"{head}\n{table(rows, ('', 'seconds', 'range', 'MFU', 'rate'))}\n"
        f"matrix product: {found['matmul_flops'] / 1e9:,.1f} GFLOP/s"
    )
