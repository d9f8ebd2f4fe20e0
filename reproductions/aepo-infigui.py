"""AEPO against RLOO on the first guess, from a policy that is confidently wrong."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.parts.part import Shaping
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY, AREA
from unipo.reproduce.lesson import Lesson
from unipo.reproduce.logs import fifths
from unipo.reproduce.rigged import LETTERS, examples, questions
from unipo.rewards.exploration import exploration_reward
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.registry import register_task
from unipo.tasks.task import Sample, Scores

CELLS = "0123456789"


def ask(rng: Random) -> str:
    return f"tap {rng.choice(CELLS)} {''.join(rng.choices(LETTERS, k=4))}"


def target(question: str) -> str:
    """Where the named thing is: three cells further than its name says."""
    return CELLS[(int(question.split(" ")[1]) + 3) % 10]


def write(rng: Random) -> tuple[str, str]:
    """One to four cells; the first is nearly always the one that has the thing's name, which is wrong."""
    question = ask(rng)
    named = question.split(" ")[1]
    first = named if rng.random() < 0.9 else rng.choice(CELLS)
    others = rng.sample([c for c in CELLS if c != first], k=rng.randrange(4))
    return question, "".join((first, *others))


@dataclass(frozen=True)
class CellReward:
    """The adaptive exploration reward of ranked cells, 1 + AER; -1 for a repeated cell or for what is no list.

    score: whether the first cell is right.
    """

    name: str = "cells"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        total: list[float | None] = []
        score: list[float | None] = []
        for sample in samples:
            cells, goal = sample.text, target(str(sample.row["question"]))
            formed = re.fullmatch(r"\d+", cells) is not None and len(set(cells)) == len(cells)
            rank = cells.index(goal) + 1 if goal in cells else None
            total.append(1 + exploration_reward(len(cells), rank) if formed else -1.0)
            score.append(float(formed and rank == 1))
        return Scores(total, score, {"exploration": list(total)}, [s.text for s in samples])


def cells(size: int = 4096, heldout: int = 512, seed: int = 0) -> DatasetTask:
    train, held = (examples(questions(ask, s, n, seed), target) for s, n in (("train", size), ("heldout", heldout)))
    return DatasetTask("cells", train, held, CellReward())


@dataclass(frozen=True)
class FirstGuess(Shaping):
    """Pay for the first guess alone: 2 if it is right, 0 if not, -1 without the form."""

    source = "naive RLVR, the baseline of InfiGUI-G1 (arXiv 2508.05731)"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "score")

    def __call__(self, batch: Batch) -> Tensor:
        reward: Tensor = batch.reward
        return torch.where(reward < 0, reward, 2 * batch.score.to(reward.dtype))

    def formula(self) -> str:
        return "R_i = 2 if the first guess is right else 0"


def guesses(run: Path) -> dict[str, float]:
    """Mean number of guesses, at most in any fifth of the steps and in the last, and how often any guess is right then."""
    parts = fifths(run)
    means = [sum(len(r["text"]) for r in part) / len(part) for part in parts]
    found = [r["answer"] in r["text"] for r in parts[-1]]
    return {"found": sum(found) / len(found), "guesses": means[-1], "most_guesses": max(means)}


register_task("cells", cells)
REPRODUCTION = Reproduction(
    method="aepo-infigui",
    claim="Letting a response make several ranked guesses, paid by how few were needed, finds targets that a confidently "
    "wrong policy would not: its first guess is right more often than when only one guess is paid.",
    arms={"aepo": "aepo-infigui", "rloo on the first guess": "aepo-infigui[shaping=FirstGuess()]"},
    metrics=(
        ACCURACY,
        AREA,
        Metric("found", "responses of which any guess is right, last fifth"),
        Metric("guesses", "guesses per response in the last fifth", higher=False, kind="number"),
        Metric("most_guesses", "most guesses per response in any fifth", kind="number"),
    ),
    measure=guesses,
    task="cells",
    start=Lesson(write),
    budget="160 steps",
    points=7,
    seeds=6,
    train={"sampling": {"max_tokens": 12}, "log": {"completions": 64}},
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="Ten cells in place of a screen: a guess is a digit, not a point, and a repeated one stands for points on a "
    "line. The lesson's first guess is the wrong cell 9 times in 10 and the right one once in 100. Accuracy is of the "
    "first guess, the paper's headline. In a trial run of 80 steps AEPO had found every target, with its second guess. Equal "
    "steps of 64 responses; more guesses are more tokens.",
)
