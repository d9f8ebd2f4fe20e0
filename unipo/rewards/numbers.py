"""Number match: the last number of a response against the number of the answer (GSM8K and its like)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from unipo.errors import ConfigError, unknown
from unipo.rewards.policy import count_events, leaf_scores
from unipo.rewards.thinking import final_text
from unipo.tasks.task import Sample, Scores

Where = Literal["auto", "last", "hash", "answer"]
WHERE = ("auto", "last", "hash", "answer")

# A sign belongs to a number only where it cannot be a minus between two of them ("10-5" holds 10 and 5).
NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>(?<![\w)\].])[-−+])?\\?[$€£¥]?"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?P<exponent>[eE][-+]?\d{1,4}(?!\w))?"
)
ANSWER = re.compile(r"answer\s*(?:is\s*:?|:|=)", re.IGNORECASE)


def find_number(text: str, where: Where = "auto") -> str | None:
    """The number a text answers with, as plain digits ("$1,234.50" gives "1234.50"), or None.

    where: "hash": the first number after the last "####" (GSM8K); "answer": the first after the last
    "answer:", "answer is" or "answer ="; "last": the last number of the text; "auto": the first of these
    three rules whose marker stands in the text.  A marker with no number after it gives None: what stood
    before it was not offered as the answer.
    A comma is a thousands separator only before exactly three digits, so "1,2" holds two numbers, 1 and 2.
    Letters before a number hide it ("AZYUK2A" holds none); letters after it are a unit ("72kg" is 72).
    """
    if where not in WHERE:
        raise unknown("place to look for a number", where, WHERE)
    if where == "hash" or (where == "auto" and "####" in text):
        _, marker, after = text.rpartition("####")
        return _plain(NUMBER.search(after)) if marker else None
    answers = list(ANSWER.finditer(text)) if where in ("auto", "answer") else []
    if answers:
        return _plain(NUMBER.search(text, answers[-1].end()))
    if where == "answer":
        return None
    last = None
    for match in NUMBER.finditer(text):
        last = match
    return _plain(last)


def _plain(match: re.Match[str] | None) -> str | None:
    if match is None:
        return None
    sign = "-" if match["sign"] in ("-", "−") else ""
    return sign + match["digits"].replace(",", "") + (match["exponent"] or "")


def equal_numbers(gold: str, found: str, tolerance: float = 0.0) -> bool:
    """Whether two numbers agree: exactly as decimals (72 = 72.0) at tolerance 0, else |a - b| <= tolerance."""
    if tolerance == 0.0:
        return Decimal(gold) == Decimal(found)
    return math.isclose(float(gold), float(found), rel_tol=0.0, abs_tol=tolerance)


@dataclass(frozen=True)
class NumberMatch:
    """1 where the number found in the response (after its reasoning) is the answer's number, else 0.

    where: which number of the response counts, see `find_number`.  The answer may be a whole GSM8K solution
    ending in "#### 72".  tolerance: largest absolute difference that still counts.
    An answer without a number cannot be scored: None, counted as "unparsed_gold" ("no_answer" if there is
    none at all).  Fractions are not computed; use `Maths` for those.
    Source: the strict and flexible GSM8K scorers of volcengine/verl: verl/utils/reward_score/gsm8k.py.
    """

    where: Where = "auto"
    tolerance: float = 0.0
    name: str = "numbers"

    def __post_init__(self) -> None:
        if self.where not in WHERE:
            raise unknown("place to look for a number", str(self.where), WHERE)
        if isinstance(self.tolerance, bool) or not isinstance(self.tolerance, int | float) or not self.tolerance >= 0:
            raise ConfigError(f"{self.name}: tolerance must be a number >= 0, got {self.tolerance!r}")

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        values: list[float | None] = []
        extracted: list[str | None] = []
        for sample in samples:
            text = final_text(sample.text, sample.prompt)
            found = None if text is None else find_number(text, self.where)
            gold = None if sample.answer is None else find_number(sample.answer)
            extracted.append(found)
            if gold is None:
                values.append(None)
            else:
                values.append(float(found is not None and equal_numbers(gold, found, self.tolerance)))
        missing = sum(sample.answer is None for sample in samples)
        events = count_events(no_answer=missing, unparsed_gold=values.count(None) - missing)
        return leaf_scores(self.name, values, extracted=extracted, events=events)
