"""A word to be copied, after as much filling as one likes: a task in which responses may have any length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from unipo.reproduce.rigged import LETTERS, examples, questions
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.registry import register_task
from unipo.tasks.task import Sample, Scores

MOST = 24


def ask(rng: Random) -> str:
    """One question, drawn with `rng`."""
    return f"copy {''.join(rng.choices(LETTERS, k=4))}"


def copied(question: str) -> str:
    """The word to be copied."""
    return question.partition(" ")[2]


def writes(wrong: float) -> Callable[[Random], tuple[str, str]]:
    """Demonstrations: the word after 0 to 24 marks, with one letter changed as often as `wrong` says."""

    def write(rng: Random) -> tuple[str, str]:
        question = ask(rng)
        word = list(copied(question))
        if rng.random() < wrong:
            word[rng.randrange(len(word))] = rng.choice(LETTERS)
        return question, "." * rng.randint(0, MOST) + "".join(word)

    write.__doc__ = f"The word after 0 to {MOST} marks, with a letter drawn anew in {wrong:.0%} of them."
    return write


@dataclass(frozen=True)
class CopyReward:
    """1 where the text without the marks before it is the word, else 0."""

    name: str = "copy"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        found = [s.text.lstrip(".") for s in samples]
        right = [float(a == s.answer) for a, s in zip(found, samples, strict=True)]
        return Scores([*right], [*right], {"copy": [*right]}, [*found])


def copy_task(size: int = 64, heldout: int = 512) -> DatasetTask:
    """The task: so many words to train on and to hold out, none in both."""
    train, held = (examples(questions(ask, s, n, 0), copied) for s, n in (("train", size), ("heldout", heldout)))
    return DatasetTask("copy", train, held, CopyReward())


register_task("copy", copy_task)
