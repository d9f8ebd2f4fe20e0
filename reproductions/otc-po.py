"""OTC-GRPO against GRPO: questions need 0, 1 or 2 imitated tool calls, and more never harm."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from torch import Tensor

from unipo.batch import Batch
from unipo.parts.history import CallEfficiency
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.lesson import Lesson
from unipo.reproduce.logs import late
from unipo.reproduce.rigged import LETTERS, examples, questions
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.registry import register_task
from unipo.tasks.task import Sample, Scores

NEEDS, MOST = {"easy": 0, "plain": 1, "hard": 2}, 6


def ask(rng: Random) -> str:
    return f"{rng.choice(list(NEEDS))} {''.join(rng.choices(LETTERS, k=5))}"


def write(rng: Random) -> tuple[str, str]:
    """From 0 to 6 calls, whatever the question needs, then the end."""
    return ask(rng), "?" * rng.randint(0, MOST) + "."


@dataclass(frozen=True)
class CallsReward:
    """1 for a response of some calls and an end, with at least as many as the question needs. Component: calls."""

    name: str = "calls"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        calls = [s.text.count("?") for s in samples]
        needs = [NEEDS[str(s.row["question"]).partition(" ")[0]] for s in samples]
        form = [re.fullmatch(r"\?*\.", s.text) is not None for s in samples]
        paid = [float(ok and n >= need) for ok, n, need in zip(form, calls, needs, strict=True)]
        return Scores([*paid], [*paid], {"calls": [float(n) for n in calls]}, [s.text for s in samples])


def calls_task(size: int = 128, heldout: int = 512) -> DatasetTask:
    train, held = (examples(questions(ask, s, n, 0)) for s, n in (("train", size), ("heldout", heldout)))
    return DatasetTask("calls", train, held, CallsReward())


register_task("calls", calls_task)


@dataclass(frozen=True)
class AddedEfficiency(CallEfficiency):
    """The efficiency added to the reward instead of multiplied: the paper's ablation."""

    def __call__(self, batch: Batch) -> Tensor:
        factor = super().__call__(batch.with_columns(None, reward=batch.reward * 0 + 1))
        added: Tensor = batch.reward + factor
        return added

    def formula(self) -> str:
        return super().formula().replace("*=", "+=", 1)


def calls(run: Path) -> dict[str, float]:
    """Over the last fifth of the steps: calls per response, and right responses per call (the paper's productivity)."""
    count = late(run, "reward/calls")
    return {"calls": count, "productivity": late(run, "score/mean") / max(count, 1e-9)}


REPRODUCTION = Reproduction(
    method="otc-po",
    claim="Multiplying the reward by how near the tool calls are to the fewest that ever sufficed cuts calls by much, at the "
    "accuracy of GRPO.",
    arms={
        "otc-po": "otc-po[shaping.0.calls=calls]",
        "grpo": "otc-po[shaping=[]]",
        "added": "otc-po[shaping=AddedEfficiency(calls='calls')]",
    },
    metrics=(Metric("calls", "calls per response over the last fifth", higher=False, kind="number"), ACCURACY),
    measure=calls,
    task="calls",
    start=Lesson(write),
    budget="60 steps",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    select="productivity",
    notes="Tools are imitated: a lesson teaches the model to write 0 to 6 marks that stand for calls, and a question pays "
    "where there are as many as its kind needs, or more. 128 questions, so that the stored minimum of each is met again. "
    "Steps are the budget, as shorter responses would else buy more of them. The search takes right responses per call, the "
    "paper's productivity, for every arm.",
)
