"""Exact match: the answer and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unipo.rewards.policy import count_events, leaf_scores
from unipo.rewards.thinking import final_text
from unipo.tasks.task import Sample, Scores


@dataclass(frozen=True)
class ExactMatch:
    """1 where the response, after its reasoning, is the answer to the letter, else 0.

    strip: ignore white space around both.  casefold: ignore case.  A sample without an answer cannot be
    scored: None, counted as "no_answer".
    """

    strip: bool = True
    casefold: bool = False
    name: str = "exact"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        found = [final_text(sample.text, sample.prompt) for sample in samples]
        values: list[float | None] = []
        for sample, text in zip(samples, found, strict=True):
            if sample.answer is None:
                values.append(None)
            else:
                values.append(float(text is not None and self._normal(text) == self._normal(sample.answer)))
        extracted = [None if text is None else self._normal(text) for text in found]
        return leaf_scores(self.name, values, extracted=extracted, events=count_events(no_answer=values.count(None)))

    def _normal(self, text: str) -> str:
        stripped = text.strip() if self.strip else text
        return stripped.casefold() if self.casefold else stripped
