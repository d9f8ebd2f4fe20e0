"""The minimum non-negative sum: put a sign before each digit so that the sum is the smallest that is not negative.

A response has one step per digit.  Its state is the partial sum, a token "S-36" .. "S36".  The partial sums along all
choices of signs stand in `row["traces"]`, the best first: their shares at each step are what continuous tokens learn.

Source: CoT2 (arXiv 2505.23648), sec. 3; alperengozeten/CoT2: data/generate_data.py, train/continuous_train.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from unipo.errors import ConfigError
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.task import Example, Response, Sample, Scores

START = "<BOS>"


def vocabulary(digits: int = 4, largest: int = 9) -> tuple[str, ...]:
    """Every token of the task: special marks, digits D0..D9, partial sums (90 tokens for four digits up to 9:
    the authors' 89 and a mark for unknown words)."""
    most = digits * largest
    marks = ("<PAD>", START, "<EOS>", "->", "+", "-", "<UNK>")
    return (*marks, *(f"D{d}" for d in range(max(9, largest) + 1)), *(f"S{s}" for s in range(-most, most + 1)))


def sum_traces(digits: Sequence[int]) -> list[tuple[int, ...]]:
    """Partial sums along all choices of signs, the best first.

    Better is a smaller final sum that is not negative; negative ones come after, those nearest to 0 first.  Ties go to
    the signs that come first, minus before plus.
    """
    signs = itertools.product((-1, 1), repeat=len(digits))
    found = [tuple(itertools.accumulate(s * d for s, d in zip(choice, digits, strict=True))) for choice in signs]
    return sorted(found, key=lambda partial: (partial[-1] < 0, abs(partial[-1])))


def smallest_sum(digits: Sequence[int]) -> int:
    """The answer. It always exists: the sums of all signs and of their opposites differ in sign."""
    return sum_traces(digits)[0][-1]


@dataclass(frozen=True)
class MnnsReward:
    """score: 1 if the last word of the response is the answer, as "S3", and there are at least as many words as digits."""

    name: str = "mnns"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        said = [s.text.split() for s in samples]
        whole = [len(words) >= max(1, len(s.row.get("digits", ()))) for words, s in zip(said, samples, strict=True)]
        last = [words[-1] if full else None for words, full in zip(said, whole, strict=True)]
        score: list[float | None] = [
            float(found is not None and found == s.answer) for found, s in zip(last, samples, strict=True)
        ]
        return Scores(total=score, score=list(score), extracted=last)


def mnns_task(
    *, digits: int = 4, smallest: int = 1, largest: int = 9, heldout: float = 0.2, seed: int = 0
) -> DatasetTask:
    """Every sequence of `digits` digits in [smallest, largest].

    heldout: share of the sets of digits that is held out; all orders of a set stand on one side.  The demonstration of
    each example is its best trace.
    Raises ConfigError: settings out of range.
    """
    if digits < 2 or not 1 <= smallest <= largest or not 0 <= heldout < 1:
        raise ConfigError(
            "mnns needs digits >= 2, 1 <= smallest <= largest and 0 <= heldout < 1; got "
            f"digits={digits}, smallest={smallest}, largest={largest}, heldout={heldout}"
        )
    numbers = range(smallest, largest + 1)
    sets = list(itertools.combinations_with_replacement(numbers, digits))
    rng = Random(seed)
    rng.shuffle(sets)
    cut = len(sets) - int((1 - heldout) * len(sets))
    sides = []
    for chosen in (sets[:cut], sets[cut:]):
        orders = [order for members in chosen for order in sorted(set(itertools.permutations(members)))]
        rng.shuffle(orders)
        sides.append(tuple(_example(i, order) for i, order in enumerate(orders)))
    return DatasetTask("mnns", sides[1], sides[0], MnnsReward())


def _example(place: int, digits: tuple[int, ...]) -> Example:
    traces = [[f"S{s}" for s in partial] for partial in sum_traces(digits)]
    answer = traces[0][-1]
    row = {"digits": list(digits), "traces": traces, "answer": answer}
    prompt = " ".join((START, *(f"D{d}" for d in digits)))
    return Example(prompt, answer, (Response(" ".join(traces[0])),), row, place)
