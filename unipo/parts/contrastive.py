"""Regress differences of the KL-regularised reward between the responses of a prompt to zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.part import Objective, Pieces

FORMS = ("squared", "score", "product")


def leave_one_out_residual(x: Tensor, layout: Layout, where: Tensor) -> Tensor:
    """How far each member is from the mean of the others: d_i = k/(k-1) (x_i - mean_g x). [S] -> [S].

    where: [S] bool, the members.  0 for others and where a prompt has fewer than two.  Differentiable.
    """
    x = torch.where(where, x, torch.zeros_like(x))
    count = layout.to_sequences(layout.group_count(where)).to(x.dtype)
    others = (layout.to_sequences(layout.group_sum(x)) - x) / (count - 1).clamp(min=1)
    return torch.where(where & (count > 1), x - others, torch.zeros_like(x))


@dataclass(frozen=True)
class Contrastive(Objective):
    """CoPG on the k scored responses of a prompt, from any distribution with full support, without importance ratio.

        h_i = sum_t log pi(y_it) - log pi_ref(y_it);   R'_i = R_i - beta h_i
        squared:  l = 1/(k-1) sum_{i>j} (R'_i - R'_j)^2
        score:    l = - sum_i sg[d_i] h_i,                  d_i = k/(k-1) (R'_i - mean R')
        product:  l = - 1/(k-1) sum_{i>j} ((R_i - R_j) - beta/2 (h_i - h_j)) (h_i - h_j)

    With two responses these are the pair losses.  The gradient of `squared` is 2 beta times that of the other two,
    which live on as beta -> 0.  R' uses the current policy.  h is a sum, end token included: dividing it by the
    length would change the optimum, which is pi_ref exp(R/beta) / Z for every sampling distribution.  An answer
    that is never sampled is fixed only up to normalisation.  Prompts with fewer than two scored responses give 0.
    Equal rewards still pull h_i and h_j together.
    Source: CoPG (arXiv 2406.19185); k responses: Command A (arXiv 2504.00698).  No official code.
    Unsure: the authors' constant in front of the loss.
    """

    source = "CoPG (arXiv 2406.19185); Command A (arXiv 2504.00698)"
    level: ClassVar[str] = "prompt"
    smallest_group: ClassVar[int] = 2
    beta: float = 0.05
    form: str = "squared"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ConfigError(f"Contrastive.form is one of {', '.join(FORMS)}, got {self.form!r}")
        if self.beta < 0 or (self.beta == 0 and self.form == "squared"):
            raise ConfigError(f"Contrastive.beta is not negative, and positive for form 'squared', got {self.beta}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "scored", "logp", "reference_logp", "mask")

    def active(self, batch: Batch) -> Tensor:
        layout = batch.layout
        several = layout.group_count(batch.scored) > 1
        active: Tensor = batch.mask & layout.to_tokens(layout.to_sequences(several) & batch.scored)
        return active

    def _gain(self, batch: Batch) -> Tensor:
        """[S] h_i."""
        layout, mask = batch.layout, batch.mask
        return layout.seq_sum(batch.logp, mask) - layout.seq_sum(batch.reference_logp, mask)

    def _residual(self, batch: Batch, h: Tensor, beta: float) -> Tensor:
        """[S] d_i of R - beta h."""
        reward = torch.where(batch.scored, batch.reward, torch.zeros_like(batch.reward)).to(h.dtype)
        return leave_one_out_residual(reward - beta * h, batch.layout, batch.scored)

    def __call__(self, batch: Batch) -> Tensor:
        layout, h = batch.layout, self._gain(batch)
        if self.form == "score":
            return -layout.group_sum(self._residual(batch, h.detach(), self.beta) * h)
        # sum_{i>j} (a_i - a_j)(b_i - b_j) / (k-1) is the sum over i of d_i(a) b_i: the d_i of a group add up to 0.
        if self.form == "product":
            return -layout.group_sum(self._residual(batch, h, self.beta / 2) * h)
        residual = self._residual(batch, h, self.beta)
        count = layout.group_count(batch.scored).clamp(min=1)
        return layout.group_sum(residual * residual) * (count - 1) / count

    def pieces(self, batch: Batch) -> Pieces:
        """Advantage 2 beta d_i (squared) or d_i: the other responses' regularised reward is the baseline."""
        residual = self._residual(batch, self._gain(batch).detach(), self.beta)
        advantage = batch.layout.to_tokens(residual * (2 * self.beta if self.form == "squared" else 1.0))
        return Pieces(self.active(batch).to(advantage.dtype), torch.ones_like(advantage), advantage)

    def formula(self) -> str:
        b = f"{self.beta:g}"
        h = "h_i = sum_t log pi(y_it)/pi_ref(y_it)"
        if self.form == "score":
            return f"l = -sum_i sg[k/(k-1) (R'_i - mean R')] h_i,  R' = R - {b} h, {h}"
        if self.form == "product":
            return f"l = -1/(k-1) sum_(i>j) ((R_i - R_j) - {self.beta / 2:g} (h_i - h_j)) (h_i - h_j),  {h}"
        return f"l = 1/(k-1) sum_(i>j) (R'_i - R'_j)^2,  R' = R - {b} h, {h}"
