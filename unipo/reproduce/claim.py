"""What a reproduction states: the claim, who is compared, on what, and which number decides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from unipo.compare.plan import Arm, Plan
from unipo.compare.spelling import OWN, parse_arm, parse_budget, plain_train
from unipo.errors import ConfigError
from unipo.training.config import merged
from unipo.training.defaults import STARTER_DEFAULTS

SHOWN, NOT_SHOWN, REVERSED = "shown", "not shown at this scale", "reversed"
RULE = (
    "The first metric decides: the 95 % interval of the mean paired difference (system minus baseline, by seed) excludes "
    f"0 in the claimed direction: {SHOWN}; includes 0: {NOT_SHOWN}; excludes 0 in the other: {REVERSED}."
)
# What the shipped model learns with, the same for every arm; no method's own weight decay.
STARTER: dict[str, Any] = {
    "sampling": STARTER_DEFAULTS["sampling"],
    "optim": {**STARTER_DEFAULTS["optim"], "weight_decay": 0.0},
    "eval": {"prompts": 512},
}
SEARCH_SEED = 1000


@dataclass(frozen=True)
class Metric:
    """A number of a run: "final" or "area" of its curve, a cost (tokens, updates, passes, seconds), or a measure's.

    higher: is more of it what the claim says of the system?  kind: how it is shown.
    """

    name: str
    what: str
    higher: bool = True
    kind: Literal["share", "number"] = "share"

    def shown(self, value: float) -> str:
        """A value as tables print it."""
        return f"{100 * value:.1f} %" if self.kind == "share" else f"{value:.4g}"

    def interval(self, e: Mapping[str, Any]) -> str:
        """An estimate, as `Estimate.as_dict` gives it."""
        return f"{self.shown(e['value'])} [{self.shown(e['low'])}, {self.shown(e['high'])}]"


ACCURACY = Metric("final", "held-out accuracy at the end")
AREA = Metric("area", "mean held-out accuracy over the budget")


@dataclass(frozen=True)
class Reproduction:
    """One system's claim and the experiment that tests it.

    method: of the catalogue.  arms: name -> spelling (see `unipo compare`); the system first, its baseline second,
    others after them.  metrics: the first decides.  budget: e.g. "100000 tokens", the same for every run.
    search: setting -> values ("lr", "optim.*", or a part's), tried for every arm alike on seeds of their own; the
    best `select` (higher is better) is taken.  train: settings of all runs, over those of the shipped model.
    measure: more numbers by name, from a finished run's directory.  start: writes the model that all runs start from
    into a directory (with quick=True under --quick), e.g. a `Lesson`; without one it is the shipped model.  notes: what
    was made smaller or differs.
    """

    method: str
    claim: str
    arms: Mapping[str, str]
    metrics: tuple[Metric, ...] = (ACCURACY, AREA)
    budget: str = "100000 tokens"
    task: str = "scratchpad"
    seeds: int = 8
    responses: int = 64
    points: int = 5
    train: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    search_seeds: int = 1
    select: str = "final"
    measure: Callable[[Path], Mapping[str, float]] | None = None
    start: Callable[..., object] | None = None
    notes: str = ""

    def __post_init__(self) -> None:
        if len(self.arms) < 2 or not self.metrics or not self.claim.strip():
            raise ConfigError("a reproduction states a claim, two arms or more (system and baseline) and a metric")
        if self.seeds < 2 or self.search_seeds < 1 or any(not values for values in self.search.values()):
            raise ConfigError("a reproduction needs two seeds or more (five for a result) and a search without gaps")

    @property
    def system(self) -> str:
        """Name of the arm that the claim is about."""
        return next(iter(self.arms))

    @property
    def baseline(self) -> str:
        """Name of the arm that it is compared with."""
        return list(self.arms)[1]

    def parsed(self) -> dict[str, Arm]:
        """The arms under their own names."""
        return {name: replace(parse_arm(text), name=name) for name, text in self.arms.items()}

    def points_of_search(self) -> list[dict[str, Any]]:
        """Every combination of the searched settings; one empty one without a search."""
        return [dict(zip(self.search, values, strict=True)) for values in itertools.product(*self.search.values())]

    def settings(self) -> dict[str, Any]:
        """Settings of all runs, over those of the shipped model, but for what lies elsewhere on another machine."""
        elsewhere = ("plugin", "policy") if self.start else ("plugin",)  # a start's model lies beside the runs
        train = plain_train(merged(STARTER, dict(self.train)))
        return {name: value for name, value in train.items() if name not in elsewhere}

    def plan(self, file: Path, arms: tuple[Arm, ...], seeds: tuple[int, ...]) -> Plan:
        """A comparison of some arms as this experiment runs it. file: where it is written down."""
        train = plain_train(merged(STARTER, dict(self.train)))
        train["plugin"] = [*train.get("plugin", ()), str(file)]
        measure = f"{file}:{self.measure.__name__}" if self.measure else ""
        tasks = {self.task: self.task}
        return Plan(arms, tasks, seeds, parse_budget(self.budget.split()), self.responses, self.points, train, measure)

    def quick(self) -> Reproduction:
        """The same experiment cut down to where it proves only that it runs."""
        train = merged(self.train, {"eval": {"prompts": 8}})
        search = {name: values[:2] for name, values in self.search.items()}
        groups = math.lcm(*(a.resolved().source.group for a in self.parsed().values()))
        start = None if self.start is None else partial(self.start, quick=True)
        cut = replace(self, budget="2 steps", seeds=2, points=0, train=train, search=search, search_seeds=1)
        return replace(cut, start=start, responses=min(self.responses, 2 * groups))


def with_settings(arm: Arm, settings: Mapping[str, Any]) -> Arm:
    """The arm with searched settings laid over its own."""
    own, optim = dict(arm.set), dict(arm.optim)
    for name, value in settings.items():
        path = OWN.get(name, name)
        head, _, rest = path.partition(".")
        if head == "optim":
            optim[rest] = value
        else:
            own[path] = value
    return replace(arm, set=own, optim=optim)


def point_name(arm: str, settings: Mapping[str, Any]) -> str:
    """What an arm is called at one point of the search."""
    return f"{arm} {' '.join(f'{k}={v}' for k, v in settings.items())}".strip()


def verdict(low: float, high: float, higher: bool) -> str:
    """The rule: where the interval of the paired difference lies. See `RULE`."""
    if not higher:
        low, high = -high, -low
    return SHOWN if low > 0 else REVERSED if high < 0 else NOT_SHOWN
