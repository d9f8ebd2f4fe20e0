"""What one finished run came to: its curve on held-out prompts and what it cost, from the logs of its directory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from unipo.errors import TrainingError
from unipo.evaluate.statistics import area_under_curve
from unipo.training.rundir import records

NAME = "outcome.json"


@dataclass(frozen=True)
class Point:
    """One evaluation: after how much of each unit, and the score."""

    steps: int
    tokens: int
    seconds: float
    score: float


@dataclass(frozen=True)
class Outcome:
    """One finished run.

    final: score of the last evaluation.  area: mean height of the curve over the budget's unit.  cost: tokens sampled,
    updates (optimiser steps), passes (extra forward passes without gradient over the batch), seconds of steps.
    measures: numbers of the plan's own measure.  code: see `code_state`; with "+"
    between them where several did parts of the run, "" where it was not noted down.
    """

    arm: str
    task: str
    seed: int
    curve: tuple[Point, ...]
    final: float
    area: float
    cost: Mapping[str, float]
    measures: Mapping[str, float] = field(default_factory=dict)
    code: str = ""

    def value(self, name: str) -> float:
        """A score by name: "final", "area", a cost, or one of its own measures."""
        known = {"final": self.final, "area": self.area, **self.cost, **self.measures}
        if name not in known:
            raise TrainingError(f"run of {self.arm} has no {name!r}; it has {', '.join(known)}")
        return known[name]


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """The records of NAME.jsonl in a run directory; none where there is no such file."""
    return records(folder / f"{name}.jsonl")


def curve(folder: Path) -> tuple[Point, ...]:
    """Held-out scores in order. Where a step was evaluated twice (a resumed run), the later one counts."""
    metrics = lines(folder, "metrics")
    steps = [0, *(int(m["step"]) for m in metrics)]
    tokens = dict(zip(steps, accumulate((_sampled(m) for m in metrics), initial=0.0), strict=True))
    seconds = dict(zip(steps, accumulate((m.get("seconds/step", 0.0) for m in metrics), initial=0.0), strict=True))
    scores = {int(e["step"]): float(e["accuracy"]) for e in lines(folder, "evaluations")}
    return tuple(Point(s, int(tokens[s]), seconds[s], scores[s]) for s in sorted(scores))


def cost(folder: Path) -> dict[str, float]:
    """What a run spent, summed over its steps."""
    metrics = lines(folder, "metrics")
    names = {"updates": "updates/taken", "passes": "passes/extra", "seconds": "seconds/step"}
    spent = {"steps": float(len(metrics)), "tokens": sum(map(_sampled, metrics))}
    return spent | {k: sum(m.get(v, 0.0) for m in metrics) for k, v in names.items()}


def _sampled(metrics: Mapping[str, float]) -> float:
    """Tokens sampled at a step, those of continuations included: what a budget of tokens counts."""
    return metrics.get("tokens/sampled", 0.0) + metrics.get("tokens/continued", 0.0)


def outcome_of(folder: Path, arm: str, task: str, seed: int, unit: str, measures: Mapping[str, float]) -> Outcome:
    """The outcome of a run that has ended."""
    points = curve(folder)
    if len(points) < 2:
        raise TrainingError(f"{folder} holds {len(points)} evaluations; a comparison needs held-out prompts")
    area = area_under_curve([getattr(p, unit) for p in points], [p.score for p in points])
    return Outcome(arm, task, seed, points, points[-1].score, area, cost(folder), dict(measures))


def write(outcome: Outcome, folder: Path) -> None:
    """Write it whole or not at all: its file says that the run is finished."""
    temporary = folder / f".{NAME}.partial"
    temporary.write_text(json.dumps(asdict(outcome)) + "\n")
    os.replace(temporary, folder / NAME)


def read(folder: Path) -> Outcome | None:
    """A run's outcome, or None while it is not finished."""
    path = folder / NAME
    if not path.is_file():
        return None
    values = json.loads(path.read_text())
    values["curve"] = tuple(Point(**p) for p in values["curve"])
    return Outcome(**values)


def of_arm(outcomes: Iterable[Outcome], arm: str, task: str | None = None) -> list[Outcome]:
    """The runs of one arm (on one task), by task and seed."""
    chosen = [o for o in outcomes if o.arm == arm and task in (None, o.task)]
    return sorted(chosen, key=lambda o: (o.task, o.seed))
