"""EMPO: what the share of the group that agrees teaches without labels."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.chance import mix, uniform
from unipo.compare.outcome import curve
from unipo.parts.part import Shaping
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY


@dataclass(frozen=True)
class RandomReward(Shaping):
    """Uniform in [0, 1) for a response with an answer, whatever it is, else 0: the random reward of the authors' code."""

    source = "QingyangZhang/EMPO"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "sample_id", "extracted")

    def __call__(self, batch: Batch) -> Tensor:
        place = torch.full_like(batch.sample_id, batch.step)
        answered = torch.tensor([bool(found and found.strip()) for found in batch.extracted], device=place.device)
        chance = uniform(mix(batch.sample_id), place).to(batch.reward.dtype)
        return torch.where(answered, chance, torch.zeros_like(chance))

    def formula(self) -> str:
        return "R_i ~ uniform(0, 1) with an answer, else 0"


def gain(run: Path) -> dict[str, float]:
    """Accuracy after training minus before."""
    points = curve(run)
    return {"gain": points[-1].score - points[0].score}


REPRODUCTION = Reproduction(
    method="empo",
    claim="Without any label, rewarding each response by the share of its group that gives the same answer raises "
    "accuracy, nearly as far as right labels do.",
    arms={"empo": "empo", "random reward": "empo[shaping=RandomReward()]", "right labels": "empo[shaping=[]]"},
    metrics=(ACCURACY, Metric("gain", "accuracy gained by training")),
    measure=gain,
    responses=63,
    search={"lr": (1e-4, 2e-4, 4e-4)},
    budget="80000 tokens",
    notes="The rule compares with a random reward, a control of the authors' code; how near EMPO comes to right labels "
    "is the third arm's difference. The search itself looks at held-out accuracy, so it uses labels, for every arm alike. "
    "The commonest answer is right for nearly every question of this task, which is the method's condition. Equal tokens.",
)
