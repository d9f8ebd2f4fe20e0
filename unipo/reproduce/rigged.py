"""Tasks whose pay is a chance, for experiments about which kind of answer a policy comes to prefer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from unipo.tasks.dataset import DatasetTask
from unipo.tasks.scratchpad import split_of
from unipo.tasks.task import Example, Sample, Scores

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def chance(*texts: str) -> float:
    """A number in [0, 1) that is the same for the same texts, and looks uniform over others."""
    digest = hashlib.sha256("\0".join(texts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


@dataclass(frozen=True)
class RiggedReward:
    """1 with the probability that `right` says, by a hash of question and response, else 0."""

    right: Callable[[Sample], float]
    name: str = "rigged"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        score = [float(chance(str(s.row["question"]), s.text) < self.right(s)) for s in samples]
        return Scores(list(score), list(score), {"right": list(score)}, [s.text for s in samples])


def questions(ask: Callable[[Random], str], split: str, size: int, seed: int) -> list[str]:
    """So many distinct questions of one side; the same for the same seed."""
    rng, found = Random(f"rigged {split} {seed}"), dict[str, None]()
    while len(found) < size:
        question = ask(rng)
        if split_of(question) == split:
            found[question] = None
    return list(found)


def examples(asked: Sequence[str], answer: Callable[[str], str | None] = lambda question: None) -> tuple[Example, ...]:
    """Questions as examples with their answers."""
    return tuple(
        Example([{"role": "user", "content": q}], answer(q), (), {"question": q}, i) for i, q in enumerate(asked)
    )


@dataclass(frozen=True)
class Ways:
    """Questions of some kinds, each of which may be answered in several ways: a letter, then digits that say nothing.

    right: kind of question -> letter -> how often that way is right.  digits: letter -> how many follow.  first:
    letter -> how often a taught model begins with it (weights).  A question is its kind and a word without meaning.
    """

    right: Mapping[str, Mapping[str, float]]
    digits: Mapping[str, int]
    first: Mapping[str, float]

    def ask(self, rng: Random) -> str:
        """One question, drawn with `rng`."""
        return f"{rng.choice(list(self.right))} {''.join(rng.choices(LETTERS, k=5))}"

    def write(self, rng: Random) -> tuple[str, str]:
        """A demonstration, whether right or wrong."""
        letter = rng.choices(list(self.first), list(self.first.values()))[0]
        return self.ask(rng), letter + "".join(rng.choices("0123456789", k=self.digits[letter]))

    def pay(self, sample: Sample) -> float:
        """How likely a response is right; 0 for one that follows none of the ways."""
        found = re.fullmatch(r"(\D)(\d*)", sample.text)
        if found is None or len(found[2]) != self.digits.get(found[1]):
            return 0.0
        return self.right[str(sample.row["question"]).partition(" ")[0]][found[1]]

    def task(self, size: int = 4096, heldout: int = 512, seed: int = 0) -> DatasetTask:
        """The task: so many questions to train on and to hold out, none in both."""
        train, held = (examples(questions(self.ask, s, n, seed)) for s, n in (("train", size), ("heldout", heldout)))
        return DatasetTask(f"ways({'+'.join(self.digits)})", train, held, RiggedReward(self.pay))
