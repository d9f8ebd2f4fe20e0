"""`unipo generate`: sampled responses, as text or as JSON lines with tokens and log-probabilities."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from unipo.command.flags import JSON, parse
from unipo.command.models import encode, load, refuse_continuous, sampler
from unipo.command.output import json_line, line, note
from unipo.errors import ConfigError
from unipo.policy.model import Policy
from unipo.policy.spec import Compute
from unipo.rollout.engine import Request, Rollout, Sampling
from unipo.rollout.local import LocalEngine
from unipo.tasks.fields import Fields
from unipo.tasks.task import Example
from unipo.training.config import DataConfig
from unipo.training.prompts import Prompt
from unipo.training.saved import find_saved
from unipo.training.setup import load_task

ABOUT = """Sample responses from a model. Prompts are texts on the command line, rows of data, or lines of standard input.

examples:
  unipo generate starter --prompt "47+85=" --n 4
  unipo generate MODEL --prompt "Why is the sky blue?" --temperature 0.7 --top-p 0.9
  unipo generate MODEL --data test.jsonl --data-prompt question --json > responses.jsonl
  cat prompts.txt | unipo generate MODEL --json

--json prints a line per response: prompt, text, tokens, logp (of each token, under the distribution it was sampled
from), truncated."""

# Prompts sent to the engine at once, so that lines appear while others are being written.
AT_ONCE = 64


@dataclass(frozen=True)
class Options:
    """ """

    model: Annotated[
        Positional[str], arg(help="directory, Hugging Face id, or 'starter' for the shipped model", metavar="MODEL")
    ]
    prompt: Annotated[
        tuple[str, ...], UseAppendAction, arg(help="a prompt; may be given several times", help_behavior_hint="")
    ] = ()
    data: Annotated[str, arg(help="file, dataset directory or hub id with prompts", help_behavior_hint="")] = ""
    data_prompt: Annotated[str | None, arg(help="its field", metavar="TEXT", help_behavior_hint="")] = None
    limit: Annotated[int, arg(help="only so many prompts of the data; 0: all", help_behavior_hint="")] = 0
    n: Annotated[int, arg(help="responses per prompt")] = 1
    temperature: Annotated[float, arg(help="0 is greedy")] = 1.0
    top_p: Annotated[float, arg(help="sample from the likeliest tokens with this mass")] = 1.0
    top_k: Annotated[int, arg(help="sample from so many tokens; 0: all")] = 0
    max_tokens: Annotated[int, arg(help="longest response; 0: what fits, at most 512", help_behavior_hint="")] = 0
    stop: Annotated[
        tuple[str, ...], UseAppendAction, arg(help="text that ends a response; repeatable", help_behavior_hint="")
    ] = ()
    seed: Annotated[int, arg(help="fixes every sampled token")] = 0
    chat: Annotated[Literal["auto", "always", "never"], arg(help="use the tokenizer's chat template")] = "auto"
    compute: Annotated[Compute, arg(help="dtype of the arithmetic")] = "float32"
    json: Annotated[bool, FlagCreatePairsOff, JSON] = False


def run(argv: Sequence[str]) -> int:
    options = parse(Options, argv, "unipo generate", ABOUT)
    if options.n < 1:
        raise ConfigError(f"--n must be at least 1, got {options.n}")
    sampling = Sampling(options.temperature, options.top_k, options.top_p, max(1, options.max_tokens), options.stop)
    data = DataConfig(chat=options.chat, fields=Fields(prompt=options.data_prompt))
    examples = read_prompts(options)
    refuse_continuous(find_saved(options.model))
    policy = load(options.model, options.compute)
    prompts, longest, left_out = encode(policy, examples, data, options.max_tokens)
    if left_out:
        note(f"left out: {left_out}")
    sampling = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, longest, sampling.stop)
    engine = LocalEngine(policy)
    for start in range(0, len(prompts), AT_ONCE):
        chosen = prompts[start : start + AT_ONCE]
        seed = options.seed * 1_000_003 + start
        requests = [Request(p.ids, options.n, seed + i, images=p.pixels) for i, p in enumerate(chosen)]
        for prompt, group in zip(chosen, engine.generate(requests, sampling), strict=True):
            _print(policy, prompt, group, options.json, len(prompts) > 1)
    return 0


def read_prompts(options: Options) -> list[Example]:
    """Prompts from the one place that was named; standard input if none was."""
    if options.prompt and options.data:
        raise ConfigError("give --prompt or --data, not both")
    if options.data:
        data = DataConfig(data=options.data, limit=options.limit, fields=Fields(prompt=options.data_prompt))
        return list(load_task(data, sampler()).train)
    texts = list(options.prompt)
    if not texts:
        if sys.stdin.isatty():
            raise ConfigError("no prompt: give --prompt TEXT, --data FILE, or lines on standard input")
        texts = [text for text in sys.stdin.read().splitlines() if text.strip()]
        if not texts:
            raise ConfigError("standard input holds no prompt; write one per line, or give --prompt TEXT")
    return [Example(text, id=i) for i, text in enumerate(texts)]


def record(policy: Policy, prompt: Prompt, rollout: Rollout) -> dict[str, Any]:
    """One response as a JSON line holds it."""
    tokens = rollout.tokens.tolist()
    return {
        "prompt": prompt.example.prompt,
        "text": policy.written(tokens),
        "tokens": tokens,
        "logp": [round(x, 6) for x in rollout.logp.tolist()],
        "truncated": bool(rollout.truncated),
    }


def _print(policy: Policy, prompt: Prompt, group: Sequence[Rollout], as_json: bool, several: bool) -> None:
    records = [record(policy, prompt, rollout) for rollout in group]
    if as_json:
        for item in records:
            json_line(item)
        return
    if several:
        said = prompt.example.prompt
        line(f"> {said if isinstance(said, str) else said[-1].get('content', '')}")
    for i, item in enumerate(records, 1):
        line((f"[{i}] " if len(records) > 1 else "") + item["text"] + (" ..." if item["truncated"] else ""))
    if several:
        line()
