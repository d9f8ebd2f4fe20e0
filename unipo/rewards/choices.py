"""Multiple choice with several right options: part of the credit for part of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unipo.rewards.policy import count_events, leaf_scores
from unipo.rewards.thinking import final_text
from unipo.tasks.extract import extract_answer
from unipo.tasks.task import Sample, Scores


def options(text: str) -> frozenset[str]:
    """The options named in "A, C", without case and white space. An empty text names none."""
    return frozenset(piece.strip().upper() for piece in text.split(",")) - {""}


def choice_share(gold: frozenset[str], found: frozenset[str]) -> float:
    """|found| / |gold| where nothing found is wrong, else 0. gold must not be empty.

    Source: TW-GRPO (arXiv 2505.24718); longmalongma/TW-GRPO: grpo.py (accuracy_reward).
    """
    return len(found) / len(gold) if found <= gold else 0.0


@dataclass(frozen=True)
class Choices:
    """Share of the right options that the response names, 0 if it names any wrong one.

    The answer and what stands in the response's last <answer>...</answer> (or, without one, all of it after the
    reasoning) are lists of options, "A, C".  A single right option makes it an exact match.  A sample without an
    answer, or with an empty one, cannot be scored: None, counted as "no_answer".
    Source: TW-GRPO (arXiv 2505.24718), soft reward; its symbolic check of other answers is the reward `maths`.
    """

    name: str = "choices"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        values: list[float | None] = []
        extracted: list[str | None] = []
        for sample in samples:
            text = final_text(sample.text, sample.prompt)
            found = None if text is None else extract_answer(text)
            gold = options(sample.answer or "")
            extracted.append(found)
            values.append(choice_share(gold, options(found or "")) if gold else None)
        return leaf_scores(self.name, values, extracted=extracted, events=count_events(no_answer=values.count(None)))
