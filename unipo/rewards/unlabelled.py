"""For data without labels: find the answer, judge nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unipo.errors import unknown
from unipo.rewards.numbers import find_number
from unipo.rewards.policy import leaf_scores
from unipo.rewards.thinking import final_text
from unipo.tasks.extract import extract_answer
from unipo.tasks.task import Sample, Scores

Find = Literal["tagged", "boxed", "numbers"]
FIND = ("tagged", "boxed", "numbers")

# Braces up to three deep, e.g. \boxed{\frac{\sqrt{2}}{2}}.
_FLAT = r"[^{}]*"
_DEEP = rf"{_FLAT}(?:\{{{_FLAT}(?:\{{{_FLAT}\}}{_FLAT})*\}}{_FLAT})*"
_BOXED = re.compile(rf"\\(?:boxed|fbox)\s*\{{({_DEEP})\}}")


@dataclass(frozen=True)
class Unlabelled:
    """0 for every response, with the final answer extracted. For methods that make their own reward from answers.

    find: "tagged" is what stands in the last <answer>...</answer>, or without one the whole text; "boxed" the last
    \\boxed{...}; "numbers" the number that `find_number` finds.  All look behind the reasoning only.  Labels, if
    there are any, are never read.
    """

    find: Find = "tagged"
    name: str = "unlabelled"

    def __post_init__(self) -> None:
        if self.find not in FIND:
            raise unknown("way to find an answer", str(self.find), FIND)

    def answer_of(self, sample: Sample) -> str | None:
        """The final answer of one response, or None."""
        text = final_text(sample.text, sample.prompt)
        if text is None:
            return None
        if self.find == "numbers":
            return find_number(text)
        if self.find == "tagged":
            return extract_answer(text)
        boxes = _BOXED.findall(text)
        return (boxes[-1].strip() or None) if boxes else None

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        return leaf_scores(self.name, [0.0] * len(samples), extracted=[self.answer_of(s) for s in samples])
