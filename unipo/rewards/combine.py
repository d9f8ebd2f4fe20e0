"""Several rewards made one: a weighted sum, and a gate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from unipo.errors import ConfigError, unknown
from unipo.rewards.policy import checked
from unipo.tasks.task import Reward, Sample, Scores


def made_of(reward: Reward) -> str:
    """What tells rewards apart that may have one name: that of a sum says nothing of its terms."""
    return str(getattr(reward, "made_of", reward.name))


def _named_parts(reward: Reward, scores: Scores) -> dict[str, list[float | None]]:
    """The reward's total under its name, and its own components as "name/component"."""
    inner = {f"{reward.name}/{key}": part for key, part in scores.parts.items() if key != reward.name}
    return {reward.name: scores.total, **inner}


def _named_events(reward: Reward, scores: Scores) -> dict[str, int]:
    return {f"{reward.name}/{event}": count for event, count in scores.events.items()}


@dataclass(frozen=True)
class WeightedSum:
    """R = sum over k of w_k R_k.

    terms: rewards with different names.  weights: one each, default 1; a weight of 0 only reports.
    main: name of the term whose score and extracted answer are reported (default: the first).
    missing: what a None in a term does: "drop" makes the sum None, so that the sample leaves every statistic;
    "ignore" sums the terms that there are (None if there are none), for rewards that judge some tasks only.
    parts holds each term before weighting under its name; events are named "term/event".

    Normalising the sum by its group's deviation lets a small term vanish beside a large one, or rule where
    the large one is constant; normalise each part first if that matters (GDPO-like).
    Raises ConfigError for clashing names, weights that do not fit, and a negative weight on a reward that is
    already a penalty (<= 0), which would pay for what it punishes.
    """

    terms: tuple[Reward, ...]
    weights: tuple[float, ...] = ()
    main: str = ""
    missing: Literal["drop", "ignore"] = "drop"
    name: str = "sum"

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(self.terms))
        object.__setattr__(self, "weights", tuple(self.weights) or (1.0,) * len(self.terms))
        names = [term.name for term in self.terms]
        if not names:
            raise ConfigError("a weighted sum needs at least one reward")
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"two rewards of a sum are both called {name!r}; give one another name, name=...")
        if len(self.weights) != len(names):
            raise ConfigError(
                f"{len(names)} rewards ({', '.join(names)}) but {len(self.weights)} weights: {self.weights}"
            )
        for term, weight in zip(self.terms, self.weights, strict=True):
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise ConfigError(f"the weight of {term.name!r} must be a finite number, got {weight!r}")
            if weight < 0 and getattr(term, "penalty_only", False):
                raise ConfigError(
                    f"{term.name!r} is a penalty already (<= 0): the weight {weight:g} would pay for what it punishes. "
                    f"Write + {-weight:g}*{term.name}"
                )
        if not self.main:
            object.__setattr__(self, "main", names[0])
        if self.main not in names:
            raise unknown("main term of a reward sum", self.main, names)
        if self.missing not in ("drop", "ignore"):
            raise unknown("rule for missing values of a reward sum", str(self.missing), ("drop", "ignore"))

    @property
    def made_of(self) -> str:
        """All its terms and weights."""
        return " + ".join(f"{w:g}*{made_of(term)}" for w, term in zip(self.weights, self.terms, strict=True))

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        scored = [checked(term, samples) for term in self.terms]
        total: list[float | None] = []
        for row in zip(*(scores.total for scores in scored), strict=True):
            there = [w * value for w, value in zip(self.weights, row, strict=True) if value is not None]
            dropped = not there or (self.missing == "drop" and len(there) < len(row))
            total.append(None if dropped else math.fsum(there))
        parts: dict[str, list[float | None]] = {}
        events: dict[str, int] = {}
        for term, scores in zip(self.terms, scored, strict=True):
            parts |= _named_parts(term, scores)
            events |= _named_events(term, scores)
        main = scored[[term.name for term in self.terms].index(self.main)]
        return Scores(total, main.score, parts, main.extracted, events)


@dataclass(frozen=True)
class Gate:
    """R = R_reward where the gate is open, else `otherwise`.

    gate: a reward, usually a format; open where its total reaches `open_from`.  otherwise: usually 0, -0.5 or
    -1.  Unlike adding a format reward, this leaves nothing to earn by form alone; but a prompt whose samples
    are all wrong then gives no gradient towards the form.
    score stays the task's own, whether or not the gate was open.  None in either makes the total None.
    """

    reward: Reward
    gate: Reward
    otherwise: float = 0.0
    open_from: float = 1.0
    name: str = "gated"

    def __post_init__(self) -> None:
        if self.reward.name == self.gate.name:
            raise ConfigError(f"the reward and its gate are both called {self.reward.name!r}; give one another name")
        if not math.isfinite(self.otherwise):
            raise ConfigError(f"the value behind a closed gate must be finite, got {self.otherwise!r}")

    @property
    def made_of(self) -> str:
        """The reward, its gate, and what a closed one is worth."""
        opens = f"{made_of(self.gate)} >= {self.open_from:g}"
        return f"({made_of(self.reward)} where {opens}, else {self.otherwise:g})"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        task, gate = checked(self.reward, samples), checked(self.gate, samples)
        total = [self._value(r, g) for r, g in zip(task.total, gate.total, strict=True)]
        parts = {**_named_parts(self.reward, task), **_named_parts(self.gate, gate)}
        events: Mapping[str, int] = {**_named_events(self.reward, task), **_named_events(self.gate, gate)}
        return Scores(total, task.score, parts, task.extracted, events)

    def _value(self, reward: float | None, gate: float | None) -> float | None:
        if reward is None or gate is None:
            return None
        return reward if gate >= self.open_from else self.otherwise
