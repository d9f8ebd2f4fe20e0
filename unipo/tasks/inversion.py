"""Questions turned round: a single-choice question becomes one with several right options.

Source: TW-GRPO (arXiv 2505.24718), question-answer inversion.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from unipo.errors import DataError

NEGATED = {
    "did": "didn't", "does": "doesn't", "do": "don't", "is": "isn't", "are": "aren't", "was": "wasn't",
    "were": "weren't", "has": "hasn't", "have": "haven't", "had": "hadn't", "can": "can't", "could": "couldn't",
    "will": "won't", "would": "wouldn't", "should": "shouldn't",
}  # fmt: skip
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Inverted:
    """question: negated.  options: shuffled.  answer: letters of the right ones, "A,C"."""

    question: str
    options: tuple[str, ...]
    answer: str


def invert(question: str, options: Sequence[str], right: int, seed: int) -> Inverted | None:
    """The question with its auxiliary verb negated, and the once wrong options right; None where that cannot be.

    The verb must be the second word ("What did the cube hit?").  The right option (options[right]) becomes the
    one wrong option, beside a random number, from one to all, of the others, which are now right.
    The same seed gives the same result.  Raises DataError for fewer than two or too many options.
    """
    if not 2 <= len(options) <= len(LETTERS) or not 0 <= right < len(options):
        raise DataError(
            f"invert needs 2 to {len(LETTERS)} options and a right one among them, got {len(options)}, {right}"
        )
    words = question.split(" ")
    if len(words) < 2 or words[1].lower() not in NEGATED:
        return None
    negated = " ".join([words[0], NEGATED[words[1].lower()], *words[2:]])
    draw = random.Random(seed)
    others = [text for i, text in enumerate(options) if i != right]
    chosen = draw.sample(others, draw.randint(1, len(others)))
    shown = [*chosen, options[right]]
    order = draw.sample(range(len(shown)), len(shown))
    wrong = len(shown) - 1
    letters = [LETTERS[place] for place, i in enumerate(order) if i != wrong]
    return Inverted(negated, tuple(shown[i] for i in order), ",".join(letters))
