"""`unipo generate`: sampled responses, as text or as JSON lines with tokens and log-probabilities."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, make_dataclass
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from unipo.command.flags import JSON, parse, with_defaults
from unipo.command.help_text import TRAIN_HELP
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
from unipo.training.setup import end_report, load_task

ABOUT = """Sample responses from a model. Prompts are texts on the command line, rows of data, or lines of standard input.

examples:
  unipo generate starter --prompt "47+85=" --n 4
  unipo generate MODEL --prompt "Why is the sky blue?" --temperature 0.7 --top-p 0.9
  unipo generate MODEL --data test.jsonl --data.fields.prompt question --json > responses.jsonl
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
    short_data: Annotated[
        str, arg(name="data", help="file, dataset directory or hub id with prompts", help_behavior_hint="")
    ] = ""
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


# Settings of data that options above say, or that are of no use where nothing is scored.
NOT_ASKED = ("task", "data", "limit", "reward", "heldout", "chat", "bad_rewards")


def options() -> Any:
    """The dataclass of all options; `data.*` are those of training."""
    help_text = {k.removeprefix("data."): v for k, v in TRAIN_HELP.items()}
    data = with_defaults(DataConfig, DataConfig(), help_text, NOT_ASKED)
    return make_dataclass(
        "Options", [("data", data, data())], bases=(Options,), frozen=True, namespace={"__doc__": " "}
    )


def run(argv: Sequence[str]) -> int:
    o = parse(options(), argv, "unipo generate", ABOUT)
    if o.n < 1:
        raise ConfigError(f"--n must be at least 1, got {o.n}")
    sampling = Sampling(o.temperature, o.top_k, o.top_p, max(1, o.max_tokens), o.stop)
    data = data_config(o)
    examples = read_prompts(o, data)
    refuse_continuous(find_saved(o.model))
    policy = load(o.model, o.compute)
    prompts, longest, left_out = encode(policy, examples, data, o.max_tokens)
    if left_out:
        note(f"left out: {left_out}")
    sampling = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, longest, sampling.stop)
    engine = LocalEngine(policy)
    for start in range(0, len(prompts), AT_ONCE):
        chosen = prompts[start : start + AT_ONCE]
        seed = o.seed * 1_000_003 + start
        requests = [Request(p.ids, o.n, seed + i, images=p.pixels) for i, p in enumerate(chosen)]
        for prompt, group in zip(chosen, engine.generate(requests, sampling), strict=True):
            _print(policy, prompt, group, o.json, len(prompts) > 1)
    return 0


def data_config(o: Any) -> DataConfig:
    """The data section, with the options that stand outside of it."""
    asked = {f.name: getattr(o.data, f.name) for f in fields(o.data) if f.name != "fields"}
    names = Fields(**{f.name: getattr(o.data.fields, f.name) for f in fields(o.data.fields)})
    return DataConfig(data=o.short_data, limit=o.limit, chat=o.chat, fields=names, **asked)


def read_prompts(o: Any, data: DataConfig) -> list[Example]:
    """Prompts from the one place that was named; standard input if none was."""
    if o.prompt and data.data:
        raise ConfigError("give --prompt or --data, not both")
    if data.data:
        task = load_task(data, sampler())
        if left_out := end_report(getattr(task, "events", {})):
            note(f"left out: {left_out}")
        return list(task.train)
    texts = list(o.prompt)
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
