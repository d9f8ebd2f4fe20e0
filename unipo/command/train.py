"""`unipo train`: defaults < configuration file < options, in one typed configuration, then one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg

from unipo.command.flags import SET, annotated, parse, settings, with_defaults
from unipo.command.help_text import TRAIN_HELP
from unipo.command.output import json_line, line, note, results_only
from unipo.errors import ConfigError
from unipo.registry import get_method
from unipo.training.config import TrainConfig, from_dict, merged, read_mapping, to_dict
from unipo.training.defaults import starter_defaults, trained_on
from unipo.training.progress import measure_of
from unipo.training.resume import begun, collect_changes
from unipo.training.shorthand import SHORT, expand

if TYPE_CHECKING:
    from unipo.training.run import Result

PROG = "unipo train"
ABOUT = """Post-train a model, watch it, and get a checkpoint that plain transformers loads.

Without arguments: trains the shipped model on a task of small sums, and reports its accuracy on held-out problems
before and after. Everything a run leaves behind is in its directory under runs/.

examples:
  unipo train
  unipo train --method grpo --steps 100 --lr 3e-4
  unipo train --model Qwen/Qwen3-0.6B --data train.jsonl --reward maths --max-tokens 512 --data.heldout.size 200
  unipo train --model MODEL --data train.jsonl --data.fields.prompt question --reward rewards.py:score --lora-rank 16
  unipo train --config run.yaml --set objective.high=0.28 --set average=SequenceMean
  unipo train --resume --run runs/cepo-20260101-120000
  torchrun --nproc-per-node 2 -m unipo.cli train --model MODEL --task countdown

A configuration file holds the same names, nested or with dots, and short ones too:
  {model: MODEL, data: train.jsonl, reward: maths, lr: 1e-5, optim: {schedule: cosine}, set: {objective.high: 0.28}}
Options override the file, the file overrides the defaults."""

SHORT_HELP: dict[str, tuple[type[Any], str]] = {
    "model": (str, "directory or Hugging Face id; the shipped model if not given"),
    "data": (str, "file, dataset directory or hub id; or --task"),
    "task": (str, TRAIN_HELP["data.task"]),
    "reward": (str, TRAIN_HELP["data.reward"]),
    "max_tokens": (int, TRAIN_HELP["sampling.max_tokens"]),
    "lr": (float, TRAIN_HELP["optim.learning_rate"]),
    "lora_rank": (int, TRAIN_HELP["policy.lora.rank"]),
    "track": (tuple[str, ...], "also show the run in these: tensorboard, wandb, mlflow, trackio"),
}
COMMON = (
    "model",
    "data",
    "task",
    "reward",
    "method",
    "steps",
    "prompts",
    "max_tokens",
    "lr",
    "lora_rank",
    "seed",
    "track",
)


@dataclass(frozen=True)
class Asked:
    """What the command line asks for: the configuration, and how the result is printed."""

    config: TrainConfig
    json: bool


def run(argv: Sequence[str]) -> int:
    """Train as the arguments say. Returns 0, or 130 for a run that was interrupted (its state is on disk)."""
    asked = read(argv)
    from unipo.training.run import train as run_training  # takes seconds, which --help need not wait for

    if asked.config.log.progress:
        note(heading(asked.config))
    with results_only(asked.json):
        result = run_training(asked.config)
    if asked.json:
        json_line(result.as_dict())
    else:
        for text in summary(result):
            line(text)
    if result.interrupted and not asked.config.log.progress:
        note(f"stopped after step {result.steps}; go on with: unipo train --resume --run {result.run}")
    return 130 if result.interrupted else 0


# -- from arguments to a configuration ---------------------------------------------------------
def read(argv: Sequence[str]) -> Asked:
    """The configuration of these arguments. Raises ConfigError for whatever cannot be meant."""
    # Parsed twice: what lies below the options depends on which file, run, model or task they name.
    first = parse(options(TrainConfig()), argv, PROG, ABOUT)
    flags = given(first, TrainConfig())
    file = expand(read_mapping(first.config), first.config) if first.config else {}
    named = merged(file, flags)
    below = merged(begun(str(named.get("run") or "")) if named.get("resume") else starter_defaults(named), file)
    base = _checked(below, first.config)
    second = parse(options(base), argv, PROG, ABOUT)
    return Asked(_checked(merged(to_dict(base), given(second, base))), second.json)


def options(base: TrainConfig) -> Any:
    """The dataclass of all options, the common ones first, with the values of `base` as defaults."""
    mirror = {f.name: f for f in fields(with_defaults(TrainConfig, base, TRAIN_HELP, hidden=("set",)))}
    members: list[Any] = []
    for name in COMMON:
        if name in SHORT:
            kind, text = SHORT_HELP[name]
            mark = arg(name=name.replace("_", "-"), help=text, help_behavior_hint="", metavar=_METAVAR[kind])
            members.append((f"short_{name}", Annotated[kind | None, mark], field(default=None)))
        else:
            members.append(_member(mirror.pop(name)))
    members += [_member(mirror.pop(name)) for name in ("run", "resume")]
    members += [
        ("config", annotated(str, "YAML file with any of these settings"), field(default="")),
        ("set", Annotated[tuple[str, ...], UseAppendAction, SET], field(default=())),
        _member(mirror.pop("plugin")),
        ("json", Annotated[bool, FlagCreatePairsOff, _JSON], field(default=False)),
    ]
    members += [_member(f) for f in mirror.values()]
    return make_dataclass("Options", members, frozen=True, namespace={"__doc__": " "})


_METAVAR: dict[type[Any], str] = {str: "TEXT", int: "INT", float: "FLOAT", tuple[str, ...]: "NAME ..."}
_JSON = arg(help="end with one line of JSON on standard output", help_behavior_hint="")


def _member(f: dataclasses.Field[Any]) -> tuple[str, Any, Any]:
    if f.default is not dataclasses.MISSING:
        return f.name, f.type, field(default=f.default)
    return f.name, f.type, field(default_factory=f.default_factory)  # type: ignore[arg-type]


def given(options: Any, base: TrainConfig) -> dict[str, Any]:
    """What the options change, as nested sections of `TrainConfig`."""
    changed: dict[str, Any] = {}
    for name in (f.name for f in fields(base)):
        if name != "set":
            collect_changes(getattr(options, name), getattr(base, name), name, changed)
    for name in SHORT:
        value = getattr(options, f"short_{name}")
        if value is not None:
            changed[name] = value
    out = expand(changed)
    if options.set:
        out["set"] = {**base.set, **settings(options.set)}
    return out


def _checked(values: Mapping[str, Any], file: str = "") -> TrainConfig:
    try:
        config: TrainConfig = from_dict(TrainConfig, values)
    except ConfigError as error:
        if not file:
            raise
        raise ConfigError(f"{file}: {error}") from error
    return config


# -- words -------------------------------------------------------------------------------------
def heading(config: TrainConfig) -> str:
    """What is about to happen, in one line."""
    model = config.policy.model or "the shipped model"
    task = trained_on(config.policy.model, config.data.task, config.data.data)
    verb = "going on with" if config.resume else "training"
    return f"{verb} {model} on {task} with {config.method}: {config.steps} steps of {config.prompts} prompts"


def summary(result: Result) -> list[str]:
    """What came of it, for people."""
    lines = [f"{result.method}: {result.steps} steps in {result.seconds:.1f} s of training"]
    for name, value in (("before", result.before), ("after", result.after)):
        if value is not None:
            lines.append(
                f"held-out {measure_of(get_method(result.method))} {name:<6} {100 * value.accuracy:5.1f} %   "
                f"(95 % interval {100 * value.low:.1f} to {100 * value.high:.1f}, {value.problems} problems)"
            )
    checkpoint = Path(result.run) / "checkpoints" / f"step-{result.steps:06d}" / "model"
    return [*lines, f"model: {checkpoint}" if checkpoint.is_dir() else f"run: {result.run}"]
