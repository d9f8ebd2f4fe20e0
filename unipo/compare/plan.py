"""What is compared: arms x tasks x seeds, one budget for all, and the configuration of every run."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import unipo
from unipo.errors import ConfigError
from unipo.method import Method
from unipo.registry import load_plugin
from unipo.training.config import TrainConfig, from_dict, merged
from unipo.training.defaults import starter_defaults
from unipo.training.progress import measure_of
from unipo.training.setup import resolve_method

Unit = Literal["tokens", "steps", "seconds"]
UNITS: tuple[Unit, ...] = ("tokens", "steps", "seconds")


@dataclass(frozen=True)
class Arm:
    """One thing that is compared. method: of the catalogue; set: settings of its parts; optim: `optim.*` of its own."""

    name: str
    method: str
    set: Mapping[str, Any] = field(default_factory=dict)
    optim: Mapping[str, Any] = field(default_factory=dict)

    def resolved(self, plugins: Sequence[str] = ()) -> Method:
        """The method with this arm's settings in place."""
        return resolve_method(self.method, self.set, plugins)


@dataclass(frozen=True)
class Budget:
    """How much every run may spend: sampled tokens, steps, or seconds of training."""

    unit: Unit
    amount: float

    def __post_init__(self) -> None:
        if self.unit not in UNITS or not math.isfinite(self.amount) or self.amount <= 0:
            raise ConfigError(
                f"a budget is a positive number of tokens, steps or seconds; got {self.amount} {self.unit}"
            )
        if self.unit != "seconds" and self.amount != int(self.amount):
            raise ConfigError(f"a budget of {self.unit} is a whole number, got {self.amount}")


@dataclass(frozen=True)
class Run:
    """One arm on one task with one seed."""

    arm: Arm
    task: str
    seed: int

    @property
    def place(self) -> Path:
        """Where it lies below the comparison's directory."""
        return Path("runs") / slug(self.task) / slug(self.arm.name) / f"seed-{self.seed}"

    def __str__(self) -> str:
        return f"{self.arm.name} on {self.task}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """A whole comparison.

    tasks: what a task is called -> what `data.task` names.  responses: per step, so that a step costs every method
    the same whatever its group; each samples responses / group prompts.  points: held-out evaluations between the
    first and the last.  train: settings of `TrainConfig` for all runs.  measure: "file.py:function" of a finished
    run's directory that returns more numbers by name.  keep: keep the trained weights.
    """

    arms: tuple[Arm, ...]
    tasks: Mapping[str, str]
    seeds: tuple[int, ...]
    budget: Budget
    responses: int = 64
    points: int = 5
    train: Mapping[str, Any] = field(default_factory=dict)
    measure: str = ""
    keep: bool = False

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, seed by seed, so that a comparison stopped early has something of every arm."""
        return tuple(Run(arm, task, seed) for seed in self.seeds for task in self.tasks for arm in self.arms)

    def config(self, run: Run, folder: Path) -> TrainConfig:
        """The configuration of one run."""
        plugins = tuple(self.train.get("plugin", ()))
        method = run.arm.resolved(plugins)
        group, whole = method.source.group, self.budget.unit == "tokens"
        if self.responses % group:
            raise ConfigError(
                f"{self.responses} responses per step cannot be groups of {group}, which {run.arm.name} samples; choose a "
                f"multiple of {group} with --responses, or write {run.arm.name.partition('[')[0]}[source.group_size=...]"
            )
        # Every response has a token at least, so that many steps are never needed.
        steps = int(self.budget.amount) // self.responses + 1 if whole else int(self.budget.amount)
        budget = {} if self.budget.unit == "steps" else {self.budget.unit: _number(self.budget)}
        own = {
            "method": run.arm.method,
            "set": dict(run.arm.set),
            "optim": dict(run.arm.optim),
            "seed": run.seed,
            "prompts": self.responses // group,
            "steps": 1_000_000 if self.budget.unit == "seconds" else steps,
            "budget": budget,
            "eval": {"points": self.points, "before": True, "after": True},
            "log": {"progress": False},
            "run": str(folder / run.place),
        }
        spec = self.tasks[run.task]
        below = starter_defaults(merged(self.train, {"data": {"task": spec}}))
        shared = merged(below, self.train, own, {"data": {"task": spec}} if spec else {})
        config: TrainConfig = from_dict(TrainConfig, shared)
        return config

    def record(self) -> dict[str, Any]:
        """Everything that decides the numbers, as plain values."""
        plugins = tuple(self.train.get("plugin", ()))
        plain: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "unipo": unipo.__version__,
                    "budget": asdict(self.budget),
                    "responses": self.responses,
                    "points": self.points,
                    "train": self.train,
                    "measure": self.measure,
                    "plugins": {str(p): _digest(Path(p)) for p in plugins},
                    "arms": {
                        a.name: {
                            "method": a.method,
                            "set": a.set,
                            "optim": a.optim,
                            "formula": a.resolved(plugins).explain(),
                        }
                        for a in self.arms
                    },
                    "tasks": dict(self.tasks),
                    "seeds": list(self.seeds),
                }
            )
        )
        return plain


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _number(budget: Budget) -> float:
    return int(budget.amount) if budget.unit == "tokens" else float(budget.amount)


def check(plan: Plan) -> None:
    """Find what cannot work before the first run starts. Raises ConfigError."""
    for path in plan.train.get("plugin", ()):
        load_plugin(path)
    for what, names in (("arm", [a.name for a in plan.arms]), ("seed", [str(s) for s in plan.seeds])):
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice or not names:
            raise ConfigError(f"{what} given twice: {', '.join(twice)}" if twice else f"there is no {what} to compare")
    if not plan.tasks:
        raise ConfigError("there is no task to compare on")
    measures = {}
    for run in plan.runs[: len(plan.arms) * len(plan.tasks)]:
        config = plan.config(run, Path())
        method = run.arm.resolved(config.plugin)
        measures[run.arm.name] = measure_of(method)
        if not method.online and plan.budget.unit == "tokens":
            raise ConfigError(f"{run.arm.name} samples no tokens: give a budget of steps or seconds")
        if config.optim.schedule != "constant" and plan.budget.unit != "steps":
            raise ConfigError(
                f"a {config.optim.schedule} schedule ends with a number of steps, which a budget of {plan.budget.unit} "
                "does not fix; use a constant one, or a budget of steps"
            )
    if len(set(measures.values())) > 1:
        told = "; ".join(f"{name}: {what}" for name, what in measures.items())
        raise ConfigError(f"these methods are evaluated by different measures, which cannot be compared ({told})")


def settle(plan: Plan, folder: Path) -> None:
    """Write the plan into its directory, or make sure that it is the one there; more arms, tasks and seeds may join.

    Raises ConfigError where a setting changed: its finished runs would be compared with others.
    """
    path, new = folder / "plan.json", plan.record()
    if path.is_file():
        old = json.loads(path.read_text())
        changed = _changes(old, new)
        if changed:
            raise ConfigError(
                f"{folder} holds a comparison with other settings: {'; '.join(changed)}. Give them as they were, or "
                "another --out"
            )
        for name in ("arms", "tasks"):
            new[name] = {**old[name], **new[name]}
        new["seeds"] = sorted({*old["seeds"], *new["seeds"]})
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(new, indent=1) + "\n")


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs, except arms, tasks and seeds that only one of them has."""
    found = []
    before, after = _flat(old), _flat(new)
    for name in sorted({*before, *after}):
        head, _, member = name.partition("\0")
        member = member.partition("\0")[0]
        if head == "seeds" or (head in ("arms", "tasks") and (member in old[head]) != (member in new[head])):
            continue
        if before.get(name) != after.get(name):
            found.append(f"{name.replace(chr(0), '.')} is {after.get(name)!r}, was {before.get(name)!r}")
    return found


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, item in value.items():
        out |= _flat(item, f"{prefix}{key}\0") if isinstance(item, Mapping) and item else {f"{prefix}{key}": item}
    return out


def default_folder(plan: Plan) -> Path:
    """A directory that the same settings lead to again, so that the same command goes on where it stopped."""
    record = {k: v for k, v in plan.record().items() if k != "seeds"}
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:6]
    names = "-".join(slug(a.name) for a in plan.arms[:4]) + ("-and-more" if len(plan.arms) > 4 else "")
    return Path("runs") / f"compare-{names[:80]}-{digest}"


def slug(name: str) -> str:
    """A name as a file name: letters, digits, dots and dashes; what was lost is told apart by a few hash digits."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:48]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
