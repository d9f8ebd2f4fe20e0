"""ADORA against GRPO where long answers are nearly always right and short ones are guesses."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.compare.outcome import lines
from unipo.parts.group_weight import LengthAdvantage
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY, AREA
from unipo.reproduce.lesson import Lesson
from unipo.reproduce.rigged import Ways
from unipo.tasks.registry import register_task

WAYS = Ways(right={"solve": {"S": 0.4, "L": 0.95}}, digits={"S": 2, "L": 20}, first={"S": 9, "L": 1})


@dataclass(frozen=True)
class PermutedLengthAdvantage(LengthAdvantage):
    """The same weights given to other prompts of the batch."""

    def weights(self, batch: Batch) -> Tensor:
        weight = super().weights(batch)
        order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(batch.step))
        return weight[order.to(weight.device)]


def length(run: Path) -> dict[str, float]:
    return {"length": lines(run, "metrics")[-1]["length/mean"]}


register_task("ways-adora", WAYS.task)
REPRODUCTION = Reproduction(
    method="adora",
    claim="Counting fully only the groups whose longest right response is longer than their wrong ones makes responses "
    "longer and accuracy rise faster than under GRPO.",
    arms={
        "adora": "adora",
        "grpo": "adora[credit=[]]",
        "weights permuted": "adora[credit=PermutedLengthAdvantage()]",
    },
    metrics=(AREA, ACCURACY, Metric("length", "response length at the end, tokens", kind="number")),
    measure=length,
    task="ways-adora",
    start=Lesson(WAYS.write),
    budget="40 steps",
    seeds=6,
    points=7,
    train={"sampling": {"max_tokens": 24}},
    search={"lr": (5e-5, 1e-4, 2e-4)},
    select="area",
    notes="Pay is rigged: a short answer (3 tokens) is right 4 times in 10, a long one (21 tokens) 19 times in 20; the "
    "lesson writes one long answer in ten. The released rule (attenuate). The third arm gives the same weights to other "
    "prompts at random. A budget of steps, as in the paper: whoever answers longer samples more tokens.",
)
