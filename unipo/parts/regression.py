"""Regression of standardised log-ratios on standardised rewards, inside each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.part import Objective, Pieces, inside_limit, log_ratio


def group_standardised(x: Tensor, layout: Layout, where: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """((x - mean_g) / s_g [S], s_g [P]) with s = sqrt(var + eps^2) of the members, biased variance.

    x: [S]; where: [S] bool, the members; 0 for others.  Differentiable in x, also where all members are equal, if
    eps > 0.  With eps = 0 a prompt of equal members gets exactly 0.
    """
    centred = torch.where(where, x - layout.to_sequences(layout.group_mean(x, where)), torch.zeros_like(x))
    still = layout.group_constant(x.detach(), where)
    variance = layout.group_mean(centred * centred, where) + eps * eps
    if eps == 0:
        variance = torch.where(still, torch.ones_like(variance), variance)
        centred = torch.where(layout.to_sequences(still), torch.zeros_like(centred), centred)
    scale = variance.sqrt()
    return centred / layout.to_sequences(scale), scale


@dataclass(frozen=True)
class GroupRegression(Objective):
    """Reg-GRPO: the group's standardised log-ratios are to equal its standardised advantages.

        rho_i = log pi(y_i) - log pi_old(y_i), summed over tokens
        l = mean_i (A_i - P_i)^2,   P_i = (rho_i - mean rho) / sqrt(var rho + eps^2),   A standardised alike (eps 0)

    At the optimum of E[R] - lambda KL(pi || pi_old) the two are equal; standardising removes lambda and the
    partition function.  With eps = 0, l = 2 (1 - corr(A, rho)), so the scale of rho does not matter and only other
    terms and the optimiser set the step.  At pi = pi_old all rho are 0; eps makes that a plain policy gradient,
    -2/(G eps) sum_i A_i grad rho_i.  Groups with equal advantages give exactly 0.  Members are the responses with
    counted tokens; A_i is the mean of a response's token advantages.  No clip.
    Source: DeepVideo-R1 (arXiv 2506.07464).  Its code could not be read.
    Unsure: how the authors treat the first step; sum or mean over tokens in rho.
    """

    source = "DeepVideo-R1 (arXiv 2506.07464)"
    level: ClassVar[str] = "prompt"
    smallest_group: ClassVar[int] = 2
    eps: float = 0.1

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise ConfigError(f"GroupRegression.eps must be positive: at pi = pi_old it is the scale, got {self.eps}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("advantage", "logp", "old_logp", "mask")

    def _target(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """([S] standardised advantage, [S] bool members, [P] bool groups in which advantages differ)."""
        layout = batch.layout
        members = layout.seq_count(batch.mask) > 0
        # Measured from its own highest, so that equal advantages have equal means whatever the lengths.
        top = layout.seq_max(torch.where(batch.mask, batch.advantage, torch.full_like(batch.advantage, -torch.inf)))
        top = torch.where(members, top, torch.zeros_like(top))
        advantage = top + layout.seq_mean(batch.advantage - layout.to_tokens(top), batch.mask)
        alive = ~layout.group_constant(advantage, members)
        return group_standardised(advantage, layout, members, 0.0)[0], members, alive

    def active(self, batch: Batch) -> Tensor:
        _, _, alive = self._target(batch)
        active: Tensor = batch.mask & batch.layout.to_tokens(batch.layout.to_sequences(alive))
        return active

    def _predicted(self, batch: Batch, members: Tensor) -> tuple[Tensor, Tensor]:
        layout = batch.layout
        rho = layout.seq_sum(log_ratio(batch.logp, batch.old_logp, batch.mask))
        return group_standardised(rho, layout, members, self.eps)

    def __call__(self, batch: Batch) -> Tensor:
        target, members, alive = self._target(batch)
        predicted, _ = self._predicted(batch, members)
        error = batch.layout.group_mean((target.to(predicted.dtype) - predicted) ** 2, members)
        return torch.where(alive, error, torch.zeros_like(error))

    def pieces(self, batch: Batch) -> Pieces:
        """Advantage 2/(G s) times the error, less its mean and its part along P: what moves rho_i."""
        layout = batch.layout
        target, members, alive = self._target(batch)
        predicted, scale = (x.detach() for x in self._predicted(batch, members))
        error = torch.where(members, target.to(predicted.dtype) - predicted, torch.zeros_like(predicted))
        along = layout.group_mean(error * predicted, members)
        push = error - layout.to_sequences(layout.group_mean(error, members)) - predicted * layout.to_sequences(along)
        size = layout.to_sequences(2 / (scale * layout.group_count(members).clamp(min=1)))
        keep = members & layout.to_sequences(alive)
        advantage = layout.to_tokens(torch.where(keep, size * push, torch.zeros_like(push)))
        mask = inside_limit(batch.logp.detach(), batch.old_logp, batch.mask)
        return Pieces(mask.to(advantage.dtype), torch.ones_like(advantage), advantage)

    def formula(self) -> str:
        return (
            "l = mean_i (A_i - P_i)^2,  A standardised in its group,  "
            f"P_i = (rho_i - mean rho)/sqrt(var rho + {self.eps:g}^2),  rho_i = sum_t log pi/pi_old"
        )
