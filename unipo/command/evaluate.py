"""`unipo eval MODEL`: accuracy on a task, and what k samples would give, each with its interval over new problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, make_dataclass
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from unipo.command.flags import JSON, annotated, parse, with_defaults
from unipo.command.help_text import TRAIN_HELP
from unipo.command.models import encode, load, sampler
from unipo.command.output import json_line, line, note, results_only, table
from unipo.command.train import expand
from unipo.errors import ConfigError, DataError
from unipo.evaluate.accuracy import Interval, accuracy_interval
from unipo.evaluate.estimators import maj_at_k, pass_at_k, pass_hat_k
from unipo.evaluate.heldout import EVAL_SEED
from unipo.rewards import resolve_reward
from unipo.rollout.engine import Request, Sampling
from unipo.rollout.local import LocalEngine
from unipo.tasks.task import Example, Reward, Task
from unipo.training.config import DataConfig, from_dict
from unipo.training.defaults import STARTER
from unipo.training.setup import load_task
from unipo.training.source import score_groups

ABOUT = """Accuracy of a model on held-out problems, with a 95 % interval that covers the choice of problems.

With --k, several responses are sampled per problem: average@k (accuracy over all of them), pass@j (at least one of j
right), pass^j (all j right) and maj@j (the commonest answer of j right), each unbiased, for j = 1, 2, 4, ... k.
A task keeps held-out problems of its own; of --data every row is used, unless --data.heldout.* chooses some.
A response that cannot be scored counts as wrong. Problems and seeds are those of `unipo train`'s own evaluation.

examples:
  unipo eval starter
  unipo eval runs/cepo-20260101-120000/checkpoints/step-000060/model --task scratchpad --k 8
  unipo eval Qwen/Qwen3-0.6B --data test.jsonl --reward maths --k 8 --temperature 0.6 --max-tokens 1024 --json"""


@dataclass(frozen=True)
class Measured:
    """scores, answers: [problem][sample]; answers None where nothing was extracted. truncated, length: means."""

    scores: list[list[float]]
    answers: list[list[str | None]]
    truncated: float
    length: float


def options() -> Any:
    """The dataclass of all options; `data.*` are those of training."""
    data = with_defaults(DataConfig, DataConfig(), {k.removeprefix("data."): v for k, v in TRAIN_HELP.items()})
    plain = [
        ("task", str | None, TRAIN_HELP["data.task"]),
        ("data", str | None, "file, dataset directory or hub id; or --task"),
        ("reward", str | None, TRAIN_HELP["data.reward"]),
    ]
    model_help = arg(help="directory, Hugging Face id, or 'starter' for the shipped model", metavar="MODEL")
    members: list[Any] = [("model", Annotated[Positional[str], model_help])]
    for name, kind, text in plain:
        mark = arg(name=name, help=text, metavar="TEXT", help_behavior_hint="")
        members.append((f"short_{name}", Annotated[kind, mark], None))
    members += [
        ("k", annotated(int, "responses per problem", 1), 1),
        ("temperature", annotated(float, "0 is greedy", 1.0), 1.0),
        ("top_p", annotated(float, "sample from the likeliest tokens with this mass", 1.0), 1.0),
        ("top_k", annotated(int, "sample from so many tokens; 0: all", 0), 0),
        ("max_tokens", annotated(int, "longest response; 0: what fits, at most 512", ""), 0),
        ("limit", annotated(int, "use only so many problems; 0: all", ""), 0),
        ("seed", annotated(int, "other samples", 0), 0),
        ("compute", annotated(str, "float32 or bfloat16", "float32"), "float32"),
        ("json", Annotated[bool, FlagCreatePairsOff, JSON], False),
        ("data", data, data()),
    ]
    return make_dataclass("Options", members, frozen=True, namespace={"__doc__": " "})


def run(argv: Sequence[str]) -> int:
    o = parse(options(), argv, "unipo eval", ABOUT)
    if o.k < 1 or o.limit < 0:
        raise ConfigError(f"--k must be at least 1 and --limit at least 0, got {o.k} and {o.limit}")
    data = data_config(o)
    task = load_task(data, sampler())
    reward = resolve_reward(data.reward) if data.reward else task.reward
    if reward is None:
        raise ConfigError(f"{task.name!r} has no reward of its own: --reward maths, numbers, or rewards.py:function")
    sampling = Sampling(o.temperature, o.top_k, o.top_p, max(1, o.max_tokens), ())
    policy = load(o.model, o.compute)
    prompts, longest, left_out = encode(policy, problems(task, data, o.limit), data, o.max_tokens)
    if left_out:
        note(f"left out: {left_out}")
    sampling = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, longest, ())
    with results_only(o.json):
        measured = measure(policy, prompts, reward, sampling, o.k, EVAL_SEED + o.seed * 1_000_003)
    found = estimates(measured, o.k)
    shown = {"model": o.model, "task": task.name, "problems": len(prompts), "k": o.k}
    shown |= {"temperature": o.temperature, "top_p": o.top_p, "top_k": o.top_k, "max_tokens": longest, "seed": o.seed}
    extra = {"truncated": measured.truncated, "length": measured.length}
    if o.json:
        json_line({**shown, **found, **extra})
    else:
        line(words(shown, found, extra))
    return 0


def data_config(o: Any) -> DataConfig:
    """The data section, with the short options in it."""
    values: dict[str, Any] = {}
    for f in fields(DataConfig):
        value = getattr(o.data, f.name)
        if hasattr(value, "__dataclass_fields__"):
            value = {g.name: v for g in fields(value) if (v := getattr(value, g.name)) is not None}
        if value not in ("", {}):
            values[f.name] = value
    short = {name: getattr(o, f"short_{name}") for name in ("task", "data", "reward")}
    section = expand({**{f"data.{k}": v for k, v in values.items()}, **{k: v for k, v in short.items() if v}})
    data: DataConfig = from_dict(DataConfig, section["data"], "data.")
    if data.task and data.data:
        raise ConfigError(f"give --task or --data, not both: {data.task!r} and {data.data!r}")
    if not data.task and not data.data and o.model not in ("", STARTER):
        raise ConfigError("what is it to be evaluated on? give --task NAME or --data FILE")
    return data


def problems(task: Task, data: DataConfig, limit: int) -> Sequence[Example]:
    """Held-out problems where there are some, else all rows of the data."""
    chosen = task.heldout or (task.train if data.data else ())
    if not chosen:
        raise DataError(f"the task {task.name!r} has no held-out problems to evaluate on")
    return chosen[:limit] if limit else chosen


def measure(policy: Any, prompts: Sequence[Any], reward: Reward, sampling: Sampling, k: int, seed: int) -> Measured:
    """Sample k responses to each prompt and have them scored."""
    engine = LocalEngine(policy)
    groups = engine.generate([Request(p.ids, k, seed + i) for i, p in enumerate(prompts)], sampling)
    marks = score_groups(policy, reward, prompts, groups).scores
    rollouts = [r for group in groups for r in group]
    return Measured(
        [[float(m["score"] or 0.0) for m in group] for group in marks],
        [[m["extracted"] for m in group] for group in marks],
        sum(r.truncated for r in rollouts) / len(rollouts),
        sum(len(r.tokens) for r in rollouts) / len(rollouts),
    )


def estimates(measured: Measured, k: int) -> dict[str, Any]:
    """accuracy with its interval, and pass@j, pass^j and maj@j for j = 1, 2, 4, ... k (maj where answers are known)."""
    right = [[score >= 1.0 for score in group] for group in measured.scores]
    counts = [sum(group) for group in right]
    ks = sorted({2**i for i in range(k.bit_length())} | {k})
    found: dict[str, Any] = {
        "accuracy": _interval(accuracy_interval(measured.scores)),
        "pass": _curve(ks, lambda j: [pass_at_k(k, c, j) for c in counts]),
        "pass_hat": _curve(ks, lambda j: [pass_hat_k(k, c, j) for c in counts]),
    }
    if _can_vote(measured.answers, right):
        pairs = list(zip(measured.answers, right, strict=True))
        found["majority"] = _curve(ks, lambda j: [maj_at_k(a, r, j) for a, r in pairs])
    return found


def _can_vote(answers: Sequence[Sequence[str | None]], right: Sequence[Sequence[bool]]) -> bool:
    """Are there answers to count, and does the reward judge a response by its answer alone?"""
    known = any(a is not None for group in answers for a in group)
    return known and all(
        {a for a, good in zip(group, verdicts, strict=True) if good}.isdisjoint(
            a for a, good in zip(group, verdicts, strict=True) if not good and a is not None
        )
        for group, verdicts in zip(answers, right, strict=True)
    )


def _curve(ks: Sequence[int], values: Callable[[int], list[float]]) -> dict[str, dict[str, float]]:
    """Mean over problems and its interval, for each number of samples."""
    curve = {}
    for j in ks:
        interval = accuracy_interval([[value] for value in values(j)])
        curve[str(j)] = {"value": interval.accuracy, "low": interval.low, "high": interval.high}
    return curve


def _interval(interval: Interval) -> dict[str, float]:
    return {"accuracy": interval.accuracy, "low": interval.low, "high": interval.high}


def words(shown: dict[str, Any], found: dict[str, Any], extra: dict[str, float]) -> str:
    """The result for people."""
    a, k = found["accuracy"], shown["k"]
    each = f" x {k} responses" if k > 1 else ""
    lines = [
        f"{shown['model']} on {shown['task']}: {shown['problems']} problems{each}, temperature {shown['temperature']:g}",
        f"accuracy{f' (average@{k})' if k > 1 else ''} {100 * a['accuracy']:.1f} %   "
        f"(95 % interval over problems {100 * a['low']:.1f} to {100 * a['high']:.1f})",
    ]
    if k > 1:
        rows = [
            (name, *(f"{100 * c['value']:5.1f} [{100 * c['low']:.1f}, {100 * c['high']:.1f}]" for c in curve.values()))
            for name, curve in (
                ("pass@j", found["pass"]),
                ("pass^j", found["pass_hat"]),
                ("maj@j", found.get("majority", {})),
            )
            if curve
        ]
        lines += ["", table(rows, ("%", *(f"j = {j}" for j in found["pass"])))]
    lines.append(
        f"mean length {extra['length']:.1f} tokens, {100 * extra['truncated']:.1f} % cut off at {shown['max_tokens']}"
    )
    return "\n".join(lines)
