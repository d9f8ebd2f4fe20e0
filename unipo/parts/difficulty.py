"""How hard a prompt is for the policy that has just sampled it, and a KL term that depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.parts.part import Derived, Signal
from unipo.parts.regulariser import ReferenceKL

HARD_UP_TO, EASY_FROM = 0.3, 0.7


def difficulty(batch: Batch, hard_up_to: float = HARD_UP_TO, easy_from: float = EASY_FROM) -> list[str]:
    """[P] 'hard' where the mean score of the group is at most hard_up_to, 'medium' up to easy_from, else 'easy'.

    Source: CLPO (arXiv 2509.25004); csuking/CLPO: ray_trainer.py, classify_samples_by_difficulty.
    """
    rate = batch.layout.group_mean(batch.score, batch.scored).tolist()
    return ["hard" if r <= hard_up_to else "medium" if r <= easy_from else "easy" for r in rate]


@dataclass(frozen=True)
class HardPrompts(Derived):
    """Marks the responses to hard prompts: those the policy mostly fails, and those rewritten from such.

    It is a column because a group may be cut apart before the loss is computed.
    """

    adds: ClassVar[tuple[str, ...]] = ("hard",)
    hard_up_to: float = HARD_UP_TO

    @property
    def needs(self) -> tuple[str, ...]:
        return ("score", "scored")

    def derive(self, batch: Batch) -> dict[str, Tensor]:
        labels = difficulty(batch, self.hard_up_to, 1.0)
        variants = batch.variant if batch.has("variant") else [""] * len(labels)
        hard = [a == "hard" or b == "hard" for a, b in zip(labels, variants, strict=True)]
        return {"hard": batch.layout.to_sequences(torch.tensor(hard, dtype=torch.bool, device=batch.layout.device))}

    def formula(self) -> str:
        return f"hard_i: mean score(x) <= {self.hard_up_to:g}, or x rewritten from such a prompt"


@dataclass(frozen=True)
class DifficultyKL(ReferenceKL):
    """`ReferenceKL` with a coefficient of its own for hard prompts: beta s_i KL, s_i = hard or other.

    The scale is applied to every token before averaging.  hard_up_to: mean score up to which a prompt is hard.
    Source: CLPO (arXiv 2509.25004); csuking/CLPO: verl/trainer/ppo/ray_trainer.py (0.5 for hard, 1 otherwise).
    """

    source = "CLPO (arXiv 2509.25004); csuking/CLPO: verl/trainer/ppo/ray_trainer.py"
    hard: float = 0.5
    other: float = 1.0
    hard_up_to: float = HARD_UP_TO

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hard < 0 or self.other < 0:
            raise ConfigError(f"DifficultyKL: the scales must not be negative, got {self.hard} and {self.other}")

    @property
    def needs(self) -> tuple[str, ...]:
        return (*super().needs, "hard") if self.beta else ()

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (HardPrompts(hard_up_to=self.hard_up_to),) if self.beta else ()

    def __call__(self, batch: Batch) -> Tensor:
        value = super().__call__(batch)
        hard = batch.layout.to_tokens(batch.hard)
        return value * torch.where(hard, torch.full_like(value, self.hard), torch.full_like(value, self.other))

    def formula(self) -> str:
        return f"{super().formula()};  times s_i = {self.hard:g} on hard prompts, {self.other:g} on others"
