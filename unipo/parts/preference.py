"""Objectives over whole responses: preference pairs and demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.parts.part import Objective, Pieces


def pair_sides(preference: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """([P] index of the preferred sequence, [P] of the other). Every prompt must have exactly two, unequal."""
    layout = batch.layout
    if not bool((layout.group_sizes == 2).all()):
        raise DataError(
            f"pairs need two responses per prompt, got groups of {sorted(set(layout.group_sizes.tolist()))}"
        )
    first = layout.group_starts
    if bool((preference[first] == preference[first + 1]).any()):
        raise DataError("a pair has equal preference on both sides; rank one above the other")
    first_wins = preference[first] > preference[first + 1]
    return torch.where(first_wins, first, first + 1), torch.where(first_wins, first + 1, first)


def dpo_loss(margin: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-(1-eps) log sigma(beta D) - eps log sigma(-beta D).

    margin: [P] D = (log pi - log pi_ref)(y_w) - (log pi - log pi_ref)(y_l), nats, summed over tokens.
    Returns [P].  Source: DPO (arXiv 2305.18290), eq. (7); label smoothing: cDPO, official code trainers.py.
    """
    return -(1 - label_smoothing) * logsigmoid(beta * margin) - label_smoothing * logsigmoid(-beta * margin)


@dataclass(frozen=True)
class DPO(Objective):
    """Direct preference optimisation on pairs. beta: strength of the implicit KL; label_smoothing: cDPO's epsilon.

    reference_free drops the reference's margin (and the reference model).
    Source: arXiv 2305.18290, eq. (7); eric-mitchell/direct-preference-optimization: trainers.py.
    """

    source = "DPO (arXiv 2305.18290), eq. (7); eric-mitchell/direct-preference-optimization: trainers.py"
    level: ClassVar[str] = "prompt"
    compares: ClassVar[int] = 2
    beta: float = 0.1
    label_smoothing: float = 0.0
    reference_free: bool = False

    def __post_init__(self) -> None:
        if self.beta <= 0 or not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"DPO needs beta > 0 and 0 <= label_smoothing < 0.5, got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        base = ("logp", "mask", "preference")
        return base if self.reference_free else (*base, "reference_logp")

    def _gain(self, batch: Batch) -> Tensor:
        """[S] log pi - log pi_ref of each response, summed over its tokens."""
        policy = batch.layout.seq_sum(batch.logp, batch.mask)
        if self.reference_free:
            return policy
        return policy - batch.layout.seq_sum(batch.reference_logp, batch.mask)

    def margin(self, batch: Batch) -> Tensor:
        """[P] gain of the preferred response minus gain of the other."""
        chosen, rejected = pair_sides(batch.preference, batch)
        gain = self._gain(batch)
        return gain[chosen] - gain[rejected]

    def __call__(self, batch: Batch) -> Tensor:
        return dpo_loss(self.margin(batch), self.beta, self.label_smoothing)

    def pieces(self, batch: Batch) -> Pieces:
        """Advantage beta (sigma(-beta D) - eps) on the preferred response, its negative on the other."""
        layout = batch.layout
        chosen, rejected = pair_sides(batch.preference, batch)
        pull = self.beta * (torch.sigmoid(-self.beta * self.margin(batch).detach()) - self.label_smoothing)
        advantage = torch.zeros(layout.n_sequences, dtype=pull.dtype, device=pull.device)
        advantage[chosen], advantage[rejected] = pull, -pull
        spread = layout.to_tokens(advantage)
        return Pieces(batch.mask.to(spread.dtype), torch.ones_like(spread), spread)

    def formula(self) -> str:
        h = "log pi(y)" if self.reference_free else "log pi(y)/pi_ref(y)"
        if self.label_smoothing:
            e = self.label_smoothing
            return f"l = -{1 - e:g} log sigma({self.beta:g} D) - {e:g} log sigma(-{self.beta:g} D),  D = h(y_w) - h(y_l), h = {h}"
        return f"l = -log sigma({self.beta:g} (h(y_w) - h(y_l))),  h(y) = {h}, summed over tokens"


@dataclass(frozen=True)
class LogLikelihood(Objective):
    """Maximum likelihood of demonstrations: l_t = -log pi(y_t | x, y_<t).

    dynamic: DFT's weight, l_t = -sg[pi(y_t)] log pi(y_t), the gradient of the expected token probability.
    Source: maximum likelihood; DFT (arXiv 2508.05629).
    """

    source = "maximum likelihood; DFT (arXiv 2508.05629)"
    dynamic: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logp", "mask")

    def _weight(self, batch: Batch) -> Tensor:
        logp = torch.where(batch.mask, batch.logp, torch.zeros_like(batch.logp)).detach()
        return logp.exp() if self.dynamic else torch.ones_like(logp)

    def __call__(self, batch: Batch) -> Tensor:
        return -self._weight(batch) * torch.where(batch.mask, batch.logp, torch.zeros_like(batch.logp))

    def pieces(self, batch: Batch) -> Pieces:
        weight = self._weight(batch)
        return Pieces(batch.mask.to(weight.dtype), weight, torch.ones_like(weight))

    def formula(self) -> str:
        return "l_t = -sg[pi(y_t)] log pi(y_t)" if self.dynamic else "l_t = -log pi(y_t | x, y_<t)"
