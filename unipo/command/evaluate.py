"""`unipo eval MODEL`: accuracy on a task, what k samples would give, and whether another model does better."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from unipo.command.flags import JSON, annotated, parse, with_defaults
from unipo.command.harness import by_harness, harness_words
from unipo.command.help_text import TRAIN_HELP
from unipo.command.models import encode, load, of_run, plugins, refuse_continuous, sampler
from unipo.command.output import json_line, line, note, results_only, table
from unipo.command.problems import (
    data_config,
    held_out,
    named,
    not_default,
    problems,
    refuse_trained_on,
    refuse_unknown,
)
from unipo.errors import ConfigError, DataError
from unipo.evaluate import measure as measuring
from unipo.evaluate.heldout import EVAL_SEED
from unipo.evaluate.paired import compare
from unipo.evaluate.record import keep
from unipo.policy.spec import Compute
from unipo.registry import load_plugin
from unipo.rewards import resolve_reward
from unipo.rollout.engine import Sampling
from unipo.tasks.task import Example, Reward
from unipo.training.card import versions
from unipo.training.config import DataConfig
from unipo.training.saved import Saved, find_saved
from unipo.training.setup import load_task

ABOUT = """Accuracy of a model on held-out problems, with a 95 % interval that covers the choice of problems.

With --k, several responses are sampled per problem: average@k (accuracy over all of them), pass@j (at least one of j
right), pass^j (all j right) and maj@j (the commonest answer of j right), each unbiased, for j = 1, 2, 4, ... k.
A task keeps held-out problems of its own; of --data every row is used, unless --data.heldout.* chooses some.
A response that cannot be scored counts as wrong. Problems and seeds are those of `unipo train`'s own evaluation.

MODEL may be a run: its newest checkpoint is then evaluated, on the run's own task if no other is named, and the
result with every response is kept in RUN/evaluations/. With --against, a second model gets the same problems and
seeds, and each difference comes with a paired interval, the average also with an exact paired test.

examples:
  unipo eval starter
  unipo eval runs/cepo-20260101-120000 --k 8 --against starter
  unipo eval Qwen/Qwen3-0.6B --data test.jsonl --reward maths --k 8 --temperature 0.6 --max-tokens 1024 --json
  unipo eval runs/cepo-20260101-120000 --harness gsm8k --limit 200"""

HARNESS = arg(
    name="harness",
    metavar="TASK",
    help="a task of lm-evaluation-harness; may be given several times",
    help_behavior_hint="",
)
HARNESS_TASKS = arg(
    name="harness-tasks", metavar="DIR", help="directory with more of its tasks, as YAML", help_behavior_hint=""
)
STOP = arg(
    name="stop", metavar="TEXT", help="text that ends a response; the run's if none is given", help_behavior_hint=""
)
PLUGIN = arg(name="plugin", metavar="TEXT", help=TRAIN_HELP["plugin"], help_behavior_hint="")


@dataclass(frozen=True)
class Question:
    """What every model is asked: the same problems, the same way."""

    task: str
    examples: Sequence[Example]
    reward: Reward
    data: DataConfig
    stop: tuple[str, ...]
    options: Any


def options() -> Any:
    """The dataclass of all options; `data.*` are those of training."""
    data = with_defaults(DataConfig, DataConfig(), {k.removeprefix("data."): v for k, v in TRAIN_HELP.items()})
    plain = [
        ("task", str | None, TRAIN_HELP["data.task"]),
        ("data", str | None, "file, dataset directory or hub id; or --task"),
        ("reward", str | None, TRAIN_HELP["data.reward"]),
    ]
    model_help = arg(help="run, directory, Hugging Face id, or 'starter' for the shipped model", metavar="MODEL")
    members: list[Any] = [("model", Annotated[Positional[str], model_help])]
    for name, kind, text in plain:
        mark = arg(name=name, help=text, metavar="TEXT", help_behavior_hint="")
        members.append((f"short_{name}", Annotated[kind, mark], None))
    members += [
        ("against", annotated(str, "another model, compared on the same problems", ""), ""),
        ("k", annotated(int, "responses per problem", 1), 1),
        ("temperature", annotated(float, "0 is greedy", 1.0), 1.0),
        ("top_p", annotated(float, "sample from the likeliest tokens with this mass", 1.0), 1.0),
        ("top_k", annotated(int, "sample from so many tokens; 0: all", 0), 0),
        ("max_tokens", annotated(int, "longest response; 0: the run's, or what fits, at most 512", ""), 0),
        ("stop", Annotated[tuple[str, ...], UseAppendAction, STOP], ()),
        ("limit", annotated(int, "use only so many problems; 0: all", ""), 0),
        ("seed", annotated(int, "other samples", 0), 0),
        ("compute", annotated(Compute, "dtype of the arithmetic", "float32"), "float32"),
        ("harness", Annotated[tuple[str, ...], UseAppendAction, HARNESS], ()),
        ("harness_tasks", Annotated[str, HARNESS_TASKS], ""),
        ("plugin", Annotated[tuple[str, ...], UseAppendAction, PLUGIN], ()),
        ("out", annotated(str, "also write the result with every response to this file", ""), ""),
        ("json", Annotated[bool, FlagCreatePairsOff, JSON], False),
        ("data", data, data()),
    ]
    return make_dataclass("Options", members, frozen=True, namespace={"__doc__": " "})


def run(argv: Sequence[str]) -> int:
    o = parse(options(), argv, "unipo eval", ABOUT)
    if o.k < 1 or o.limit < 0:
        raise ConfigError(f"--k must be at least 1 and --limit at least 0, got {o.k} and {o.limit}")
    saved = find_saved(o.model)
    if o.harness:
        found = by_harness(o, saved)
        shown = found
    else:
        found = evaluated(o, saved)
        shown = without_responses(found)
    place = keep(found, saved, o.out)
    if place:
        note(f"kept in {place}")
    if o.json:
        json_line(shown)
    else:
        line(harness_words(shown) if o.harness else words(shown))
    return 0


# -- unipo's own tasks -------------------------------------------------------------------------
def evaluated(o: Any, saved: Saved | None) -> dict[str, Any]:
    """The whole record of an evaluation, responses included (`each`)."""
    trained = of_run(saved)
    for path in plugins(o.plugin, trained.plugin if trained else ()):
        load_plugin(path)
    for model in (saved, find_saved(o.against)):
        refuse_continuous(model, o.plugin)
    refuse_unknown(o, saved, trained)
    data = data_config(o, trained)
    task = load_task(data, sampler())
    if trained is not None and not named(o):
        refuse_trained_on(data, trained.data, task)
    reward = resolve_reward(data.reward) if data.reward else task.reward
    if reward is None:
        raise ConfigError(f"{task.name!r} has no reward of its own: --reward maths, numbers, or rewards.py:function")
    longest = o.max_tokens or (trained.sampling.max_tokens if trained else 0)
    stop = o.stop or (trained.sampling.stop if trained else ())
    asked = Question(task.name, problems(task, data, o.limit), reward, data, stop, o)
    record, first = _asked(asked, o.model, longest)
    record["heldout"] = held_out(data, trained.data) if trained else None
    if not o.against:
        return record
    other, second = _asked(asked, o.against, longest)
    if other["max_tokens"] != record["max_tokens"]:
        raise ConfigError(
            f"{o.model} has room for {record['max_tokens']} tokens and {o.against} for {other['max_tokens']}: "
            "give --max-tokens, so that both may answer equally long"
        )
    common = {p.id for p in first} & {p.id for p in second}
    if not common:
        raise DataError(f"no problem fits both {o.model} and {o.against}")
    sides = [measuring.values([p for p in side if p.id in common]) for side in (first, second)]
    record["against"] = other
    record["comparison"] = {"problems": len(common), **compare(sides[0], sides[1], o.k)}
    return record


def _asked(q: Question, model: str, max_tokens: int) -> tuple[dict[str, Any], list[measuring.Problem]]:
    """(record, problems) of one model."""
    o = q.options
    Sampling(o.temperature, o.top_k, o.top_p, max(1, max_tokens), q.stop)  # complains before anything is loaded
    policy = load(model, o.compute)
    prompts, longest, left_out = encode(policy, q.examples, q.data, max_tokens)
    if left_out:
        note(f"left out for {model}: {left_out}")
    sampling = Sampling(o.temperature, o.top_k, o.top_p, longest, q.stop)
    with results_only(o.json):
        found = measuring.measure(policy, prompts, q.examples, q.reward, sampling, o.k, EVAL_SEED + o.seed * 1_000_003)
    record = {
        "model": model,
        "task": q.task,
        "reward": q.reward.name,
        "problems": len(found),
        "k": o.k,
        "temperature": o.temperature,
        "top_p": o.top_p,
        "top_k": o.top_k,
        "max_tokens": longest,
        "stop": list(q.stop),
        "seed": o.seed,
        "data": not_default(q.data),
        "compute": o.compute,
        **measuring.estimates(found),
        "versions": versions(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "each": [p.as_dict() for p in found],
    }
    return record, found


def without_responses(record: dict[str, Any]) -> dict[str, Any]:
    """The record as it is printed."""
    shown = {k: v for k, v in record.items() if k != "each"}
    if "against" in shown:
        shown["against"] = without_responses(shown["against"])
    return shown


# -- words -------------------------------------------------------------------------------------
def words(shown: dict[str, Any]) -> str:
    """The result for people."""
    parts = [_one(shown)]
    if "against" in shown:
        parts += [_one(shown["against"]), _difference(shown)]
    return "\n\n".join(parts)


def _one(shown: dict[str, Any]) -> str:
    a, k = shown["accuracy"], shown["k"]
    each = f" x {k} responses" if k > 1 else ""
    lines = [
        f"{shown['model']} on {shown['task']}: {shown['problems']} problems{each}, temperature {shown['temperature']:g}",
        f"accuracy{f' (average@{k})' if k > 1 else ''} {100 * a['accuracy']:.1f} %   "
        f"(95 % interval over problems {100 * a['low']:.1f} to {100 * a['high']:.1f})",
    ]
    if k > 1:
        rows = [
            (label, *(f"{100 * c['value']:5.1f} [{100 * c['low']:.1f}, {100 * c['high']:.1f}]" for c in curve.values()))
            for label, name in MEASURES
            if (curve := shown.get(name))
        ]
        lines += ["", table(rows, ("%", *(f"j = {j}" for j in shown["pass"])))]
    lines.append(
        f"mean length {shown['length']:.1f} tokens, {100 * shown['truncated']:.1f} % cut off at {shown['max_tokens']}"
    )
    if shown.get("heldout") is False:
        lines.append("not held out: the run was trained on these problems")
    return "\n".join(lines)


MEASURES = (("pass@j", "pass"), ("pass^j", "pass_hat"), ("maj@j", "majority"))


def _difference(shown: dict[str, Any]) -> str:
    """The comparison: the first model less the second."""
    found, k = shown["comparison"], shown["k"]
    test = found["test"]
    lines = [
        f"{shown['model']} less {shown['against']['model']} on {found['problems']} problems: "
        f"{_points(found['average'][str(k)])} points",
        f"better on {test['better']}, equal on {test['equal']}, worse on {test['worse']}; "
        f"p = {test['p']:.3g} ({test['name']}, two-sided)",
    ]
    if k > 1:
        rows = [(label, *(_points(c) for c in found[name].values())) for label, name in MEASURES if name in found]
        lines += ["", table(rows, ("points", *(f"j = {j}" for j in found["pass"])))]
    return "\n".join(lines)


def _points(e: dict[str, float | None]) -> str:
    value, low, high = e["value"], e["low"], e["high"]
    assert value is not None
    return f"{100 * value:+.1f}" + ("" if low is None or high is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]")
