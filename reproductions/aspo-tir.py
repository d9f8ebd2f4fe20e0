"""ASPO against DAPO without it, and against the same wish written into the reward."""

from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.parts.behaviour import FirstMarker
from unipo.parts.part import Shaping, Signal
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.lesson import Lesson
from unipo.reproduce.logs import late_completions
from unipo.reproduce.rigged import LETTERS, RiggedReward, examples, questions
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.registry import register_task
from unipo.tasks.task import Sample

STEPS, CALL = 8, "c"


def ask(rng: Random) -> str:
    return "solve " + "".join(rng.choices(LETTERS, k=5))


def write(rng: Random) -> tuple[str, str]:
    """Eight steps, each of them a call once in eight, else a digit that says nothing."""
    return ask(rng), "".join(CALL if rng.random() < 1 / 8 else rng.choice("0123456789") for _ in range(STEPS))


def right(sample: Sample) -> float:
    formed = len(sample.text) == STEPS and set(sample.text) <= set("0123456789" + CALL)
    return (0.9 if CALL in sample.text else 0.4) if formed else 0.0


def episodes(size: int = 4096, heldout: int = 512, seed: int = 0) -> DatasetTask:
    train, held = (examples(questions(ask, s, n, seed)) for s, n in (("train", size), ("heldout", heldout)))
    return DatasetTask("episodes", train, held, RiggedReward(right))


@dataclass(frozen=True)
class EarlyReward(Shaping):
    """The design that ASPO replaces: R_i = 1 + delta clip((p_i - mean p)/std p, -c, c) for right responses with a call."""

    source = "Understanding Tool-Integrated Reasoning (arXiv 2508.19201)"
    delta: float = -0.5
    most: float = 1.0
    signal: Signal = FirstMarker(pattern=CALL)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "score", "scored", "first_call")

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (self.signal,)

    def __call__(self, batch: Batch) -> Tensor:
        layout, reward = batch.layout, batch.reward
        called = batch.scored & (batch.score > 0.5) & (batch.first_call >= 0)
        place = batch.first_call.to(reward.dtype)
        mean = layout.to_sequences(layout.group_mean(place, called))
        std = layout.to_sequences(layout.group_mean((place - mean) ** 2, called)).sqrt()
        shift = self.delta * ((place - mean) / (std + 1e-6)).clamp(-self.most, self.most)
        return reward + torch.where(called, shift, torch.zeros_like(shift))

    def formula(self) -> str:
        return f"R_i += {self.delta:g} clip((p_i - mean p)/std p, -{self.most:g}, {self.most:g}) if right with a call"


def place(text: str) -> int:
    """Steps before the first call, 8 without one."""
    found = text.find(CALL)
    return STEPS if found < 0 else min(found, STEPS)


def late(run: Path) -> dict[str, float]:
    """Of the last fifth: where the first call stands (8 without one), and right responses that were pushed down."""
    found = late_completions(run)
    good = [r for r in found if r["score"] > 0.5]
    return {
        "place": sum(place(r["text"]) for r in found) / len(found),
        "pushed_down": sum(r["advantage"] < -1e-6 for r in good) / len(good) if good else 0.0,
    }


register_task("episodes", episodes)
REPRODUCTION = Reproduction(
    method="aspo-tir",
    claim="A bounded bias on the advantage of right responses makes the policy call its tool earlier at the same "
    "accuracy; as a bonus in the reward the same wish punishes right responses.",
    arms={
        "aspo": f"aspo-tir[selection=[],credit.0.signal=FirstMarker(pattern='{CALL}')]",
        "dapo": "aspo-tir[selection=[],credit=[]]",
        "bonus in the reward": "aspo-tir[selection=[],credit=[],shaping=EarlyReward()]",
    },
    metrics=(
        Metric("place", "steps before the first call in the last fifth", higher=False, kind="number"),
        ACCURACY,
        Metric("pushed_down", "right responses with a negative advantage, last fifth", higher=False),
    ),
    measure=late,
    task="episodes",
    start=Lesson(write),
    budget="80 steps",
    train={"sampling": {"max_tokens": 10}, "log": {"completions": 64}},
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="Pay is rigged: eight steps, right 9 times in 10 with a call anywhere and 4 times in 10 without one. Nothing is "
    "run: a call is a letter. Delta -2 and k 0.7 are the text's. The bonus's delta and bound are "
    "not known; -0.5 and 1 here. DAPO without dynamic sampling in every arm, since groups that are all right are where "
    "the bonus does its harm. Equal steps; answers are equally long.",
)
