"""Rewards that depend on how likely a response was among those of its group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.part import Shaping


def likelihood_rank(likelihood: Tensor, layout: Layout, scored: Tensor) -> Tensor:
    """Place of each response among the scored ones of its group, from 0 for the least likely.

    likelihood: [S], any monotone measure of it; scored: [S] bool.  Returns [S] int64, 0 for the unscored; equal
    values rank in the order of the batch.
    """
    value = torch.where(scored, likelihood, torch.full_like(likelihood, float("inf")))
    order = torch.argsort(value, stable=True)
    order = order[torch.argsort(layout.seq_prompt[order], stable=True)]  # by group, then by likelihood
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    rank = rank - layout.to_sequences(layout.group_starts)
    return torch.where(scored, rank, torch.zeros_like(rank))


def rank_discounted(reward: Tensor, rank: Tensor, size: Tensor, beta: float, shift: int = 0) -> Tensor:
    """Discount each reward by its likelihood rank: R'_i = R_i (1 - beta (rank_i + shift) / G).

    reward: [S]; rank: [S] in 0..G-1, 0 the least likely; size: [S], G of each response's group.  Returns [S].
    Source: Rewarding the Unlikely (arXiv 2506.02355); AndreHe02/rewarding-unlikely-release: ray_lean_trainer.py.
    """
    return reward * (1 - beta * (rank + shift).to(reward.dtype) / size.clamp(min=1).to(reward.dtype))


@dataclass(frozen=True)
class Unlikeliness(Shaping):
    """Discount the reward of a response by how likely it was among its group: see `rank_discounted`.

        l_i = mean_t log pi_old(y_it | x, y_i<t);   rank_i = place of l_i among all responses, right or wrong
    mean: over the response's own tokens; off, their sum, the probability of the response as the paper speaks of it.
    shift: 0 as the code, so that the least likely keeps its reward; 1 is the paper's formula as recalled (the most
    likely loses beta, the least likely beta/G).  The order is the same.
    A right answer stays above a wrong one for beta < 1 and rewards >= 0.  In a group that is all right the discount
    is the only difference and is scaled to full size: leave such groups out (DynamicSampling).
    Source: Rewarding the Unlikely (arXiv 2506.02355); AndreHe02/rewarding-unlikely-release: ray_lean_trainer.py.
    """

    source = "Rewarding the Unlikely (arXiv 2506.02355); AndreHe02/rewarding-unlikely-release: ray_lean_trainer.py"
    smallest_group: ClassVar[int] = 2
    beta: float = 0.25
    mean: bool = True
    shift: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1 or self.shift not in (0, 1):
            raise ConfigError(f"Unlikeliness needs 0 <= beta < 1 and shift 0 or 1, got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "scored", "old_logp", "trainable") if self.beta else ("reward",)

    def __call__(self, batch: Batch) -> Tensor:
        reward: Tensor = batch.reward
        if not self.beta:
            return reward
        layout = batch.layout
        logp = batch.old_logp.detach()
        own = layout.seq_mean(logp, batch.trainable) if self.mean else layout.seq_sum(logp, batch.trainable)
        rank = likelihood_rank(own, layout, batch.scored)
        size = layout.to_sequences(layout.group_count(batch.scored))
        return rank_discounted(reward, rank, size, self.beta, self.shift)

    def formula(self) -> str:
        if not self.beta:
            return "R_i"
        kind = "mean" if self.mean else "sum"
        place = "rank_i + 1" if self.shift else "rank_i"
        return f"R_i *= 1 - {self.beta:g} ({place})/G,  rank_i from 0 = least likely by {kind}_t log pi_old"
