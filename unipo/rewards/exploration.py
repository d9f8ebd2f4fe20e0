"""Several ranked guesses in one response, paid by how few were needed (GUI grounding).

Source: InfiGUI-G1 (arXiv 2508.05731), adaptive exploration reward; InfiXAI/InfiGUI-G1.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unipo.errors import RewardError
from unipo.rewards.thinking import CLOSE, OPEN, opened_by_prompt
from unipo.tasks.task import Sample, Scores

Point = tuple[float, float]
Box = tuple[float, float, float, float]


def exploration_reward(guesses: int, rank: int | None) -> float:
    """1/sqrt(N k) where the k-th of N guesses is the first that hits, -1/N where none does, -1 without any.

    Utility +-1 over the geometric mean of what the guesses cost to propose (N) and to check (k, or N on a miss).
    In [-1, 1]; with one guess it is +-1.  Source: InfiGUI-G1 (arXiv 2508.05731).
    """
    if guesses == 0:
        return -1.0
    return -1.0 / guesses if rank is None else 1.0 / math.sqrt(guesses * rank)


def reasoned(text: str) -> str | None:
    """What follows <think>...</think>; None unless the text starts with it, has each tag once, and both parts hold something."""
    if not text.startswith(OPEN) or text.count(OPEN) != 1 or text.count(CLOSE) != 1:
        return None
    inside, _, rest = text[len(OPEN) :].partition(CLOSE)
    return rest if inside.strip() and rest.strip() else None


def first_list(text: str) -> str | None:
    """The first balanced [...] of a text, or None."""
    start = text.find("[")
    depth = 0
    for i in range(start, len(text)) if start >= 0 else ():
        depth += {"[": 1, "]": -1}.get(text[i], 0)
        if depth == 0:
            return text[start : i + 1]
    return None


def read_points(text: str) -> list[Point] | None:
    """The points of [{"point_2d": [x, y]}, ...]; None if that is not what the text's first list is."""
    found = first_list(text)
    if found is None:
        return None
    try:
        items = json.loads(found)
    except (ValueError, RecursionError):
        return None
    points = [_numbers(item.get("point_2d"), 2) if isinstance(item, dict) else None for item in items]
    return None if None in points else [(p[0], p[1]) for p in points if p is not None]


def _numbers(value: Any, n: int) -> list[float] | None:
    """`value` as n finite numbers, or None."""
    if not isinstance(value, list | tuple) or len(value) != n:
        return None
    if any(isinstance(x, bool) or not isinstance(x, int | float) for x in value):
        return None
    try:
        numbers = [float(x) for x in value]
    except OverflowError:
        return None
    return numbers if all(math.isfinite(x) for x in numbers) else None


def collinear(points: Sequence[Point]) -> bool:
    """Whether any three points lie on a line; two equal ones do so with any third."""
    return any(
        math.isclose((b[0] - a[0]) * (c[1] - a[1]), (b[1] - a[1]) * (c[0] - a[0]))
        for a, b, c in itertools.combinations(points, 3)
    )


@dataclass(frozen=True)
class AdaptiveExploration:
    """1 + `exploration_reward` of the ranked points in a response, in [0, 2]; -1 for a response without the form.

    The form: <think>...</think> first (unless think=False), then a JSON list of {"point_2d": [x, y]}.  Any three
    points on a line give -1 too: a sweep over the screen is no guess.  More than `most` points also give -1, which
    keeps that test affordable (not in the source, whose responses are too short for more).
    field: of the data row, the right box x1, y1, x2, y2, borders inclusive; without it the sample's answer is read
    as such a JSON list.  RewardError if neither is one.
    The task's own score is 1 where the first point hits, as the method is tested.
    Source: InfiGUI-G1 (arXiv 2508.05731).
    """

    field: str = "bbox"
    think: bool = True
    most: int = 64
    name: str = "exploration"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        form: list[float | None] = []
        gain: list[float | None] = []
        first: list[float | None] = []
        extracted: list[str | None] = []
        for sample in samples:
            box = self._box(sample)
            points = self._points(sample)
            if points is None or len(points) > self.most or collinear(points):
                form.append(-1.0)
                gain.append(0.0)
            else:
                rank = next((k for k, p in enumerate(points, start=1) if _inside(p, box)), None)
                form.append(1.0)
                gain.append(exploration_reward(len(points), rank))
            first.append(float(form[-1] == 1.0 and bool(points) and _inside((points or [(0, 0)])[0], box)))
            extracted.append(json.dumps(points[0]) if points else None)
        total: list[float | None] = [(f or 0.0) + (g or 0.0) for f, g in zip(form, gain, strict=True)]
        return Scores(total, first, {"form": form, "efficiency": gain}, extracted)

    def _points(self, sample: Sample) -> list[Point] | None:
        text: str | None = opened_by_prompt(sample.prompt) + sample.text
        if self.think:
            text = reasoned(text or "")
        return None if text is None else read_points(text)

    def _box(self, sample: Sample) -> Box:
        value = sample.row.get(self.field)
        if value is None and sample.answer is not None:
            try:
                value = json.loads(sample.answer)
            except ValueError:
                value = None
        box = _numbers(value, 4)
        if box is None or box[0] > box[2] or box[1] > box[3]:
            raise RewardError(
                f"reward {self.name!r} needs the right box, four numbers x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, in "
                f"the field {self.field!r} of the data row or as a JSON list in the answer; the row has "
                f"{', '.join(map(str, sample.row)) or 'no fields'}, the value is {value!r}, the answer {sample.answer!r}"
            )
        return box[0], box[1], box[2], box[3]


def _inside(point: Point, box: Box) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]
