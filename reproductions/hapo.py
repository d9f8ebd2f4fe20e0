"""HAPO against GRPO: a word is to be copied, after as much filling as one likes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.lesson import Lesson
from unipo.reproduce.logs import late
from unipo.reproduce.rigged import LETTERS, examples, questions
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.registry import register_task
from unipo.tasks.task import Sample, Scores

MOST = 24


def ask(rng: Random) -> str:
    return f"copy {''.join(rng.choices(LETTERS, k=4))}"


def copied(question: str) -> str:
    return question.partition(" ")[2]


def write(rng: Random) -> tuple[str, str]:
    """The word after 0 to 24 marks; one letter in ten words is wrong."""
    question = ask(rng)
    word = list(copied(question))
    if rng.random() < 0.1:
        word[rng.randrange(len(word))] = rng.choice(LETTERS)
    return question, "." * rng.randint(0, MOST) + "".join(word)


@dataclass(frozen=True)
class CopyReward:
    """1 where the text without the marks before it is the word, else 0."""

    name: str = "copy"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        found = [s.text.lstrip(".") for s in samples]
        right = [float(a == s.answer) for a, s in zip(found, samples, strict=True)]
        return Scores([*right], [*right], {"copy": [*right]}, [*found])


def copy_task(size: int = 64, heldout: int = 512) -> DatasetTask:
    train, held = (examples(questions(ask, s, n, 0), copied) for s, n in (("train", size), ("heldout", heldout)))
    return DatasetTask("copy", train, held, CopyReward())


register_task("copy", copy_task)


def lengths(run: Path) -> dict[str, float]:
    """Over the last fifth of the steps: tokens per response, and right responses per 100 tokens."""
    length = late(run, "length/mean")
    return {"length": length, "yield": 100 * late(run, "score/mean") / length}


REPRODUCTION = Reproduction(
    method="hapo",
    claim="Rewarding right responses for beating the shortest right one ever seen for their prompt makes responses much "
    "shorter than GRPO's, at little loss of accuracy.",
    arms={"hapo": "hapo", "grpo": "hapo[shaping=[]]", "mean of the history": "hapo[shaping.0.record=mean]"},
    metrics=(Metric("length", "response length over the last fifth, tokens", higher=False, kind="number"), ACCURACY),
    measure=lengths,
    task="copy",
    start=Lesson(write, steps=300),
    budget="60 steps",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    select="yield",
    notes="Filling stands for idle reasoning: a lesson teaches the model to copy a word after 0 to 24 marks. 64 words, so that "
    "each is met some thirty times. Steps are the budget, as shorter responses would else buy more of them. The search "
    "takes right responses per token, for every arm. Record, floor, weight and the group of 2 are the released script's; "
    "the KL is GRPO's 0.04.",
)
