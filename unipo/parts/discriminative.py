"""Raise the score of right responses above that of wrong ones, equally for every question, inside a trust region."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.part import Objective, Pieces, Regulariser, inside_limit, log_ratio


def group_log_mean_exp(x: Tensor, layout: Layout, where: Tensor) -> Tensor:
    """log of the mean of exp(x) over the members of each prompt. x: [S]; where: [S] bool. Returns [P]; 0 for none.

    The largest member is taken out first, so nothing overflows.  Differentiable in x.
    """
    some = layout.group_count(where) > 0
    top = layout.group_max(x.detach(), where)
    top = torch.where(some, top, torch.zeros_like(top))
    risen = torch.where(where, x - layout.to_sequences(top), torch.zeros_like(x)).exp()
    mean = layout.group_mean(risen, where)
    return torch.where(some, torch.where(some, mean, torch.ones_like(mean)).log() + top, torch.zeros_like(top))


@dataclass(frozen=True)
class Discriminative(Objective):
    """DisCO: one loss per question that has right responses P and wrong ones N; others give 0.

        l = - mean_{i in P} [ s_i - tau log mean_{j in N} exp(s_j / tau) ]
        tau = infinity (DisCO-b): l = - (mean_P s - mean_N s)

    score 'log': s_i = (1/T_i) sum_t log pi_it; 'ratio': s_i = (1/T_i) sum_t pi_it/pi_old_it.  P has rewards of
    `right` and more, N of `wrong` and less: 1 and 0 as in the paper; what lies between takes no part.  A response
    without a counted token has no score and takes no part.  The coefficients of a question add up to 1 over P and
    to -1 over N whatever its success rate, where GRPO's weight is sqrt(p (1 - p)).
    Source: DisCO (arXiv 2505.12366); Optimization-AI/DisCO: verl core_algos.py, whose printed loss has the right
    gradient and a value without meaning; this is the true value.
    Unsure: rewards other than 0 and 1; the release's scripts do not match its loss names.
    """

    source = "DisCO (arXiv 2505.12366); Optimization-AI/DisCO: verl core_algos.py"
    level: ClassVar[str] = "prompt"
    smallest_group: ClassVar[int] = 2
    score: str = "log"
    tau: float = 10.0
    right: float = 1.0
    wrong: float = 0.0

    def __post_init__(self) -> None:
        if self.score not in ("log", "ratio"):
            raise ConfigError(f"Discriminative.score is 'log' or 'ratio', got {self.score!r}")
        if not self.tau > 0 or not self.wrong < self.right:
            raise ConfigError(f"Discriminative needs tau > 0 and wrong < right, got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "scored", "logp", "mask", *(("old_logp",) if self.score == "ratio" else ()))

    def sides(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """([S] bool right, [S] bool wrong), of questions that have both."""
        layout, reward = batch.layout, batch.reward
        counts = batch.scored & (layout.seq_count(batch.mask) > 0)
        right, wrong = counts & (reward >= self.right), counts & (reward <= self.wrong)
        valid = layout.to_sequences((layout.group_count(right) > 0) & (layout.group_count(wrong) > 0))
        return right & valid, wrong & valid

    def active(self, batch: Batch) -> Tensor:
        right, wrong = self.sides(batch)
        active: Tensor = batch.mask & batch.layout.to_tokens(right | wrong)
        return active

    def scores(self, batch: Batch) -> Tensor:
        """[S] mean log-prob, or mean ratio to the old policy, of the counted tokens."""
        if self.score == "log":
            return batch.layout.seq_mean(batch.logp, batch.mask)
        return batch.layout.seq_mean(log_ratio(batch.logp, batch.old_logp, batch.mask).exp(), batch.mask)

    def __call__(self, batch: Batch) -> Tensor:
        layout, s = batch.layout, self.scores(batch)
        right, wrong = self.sides(batch)
        if math.isinf(self.tau):
            other = layout.group_mean(s, wrong)
        else:
            other = self.tau * group_log_mean_exp(s / self.tau, layout, wrong)
        return other - layout.group_mean(s, right)

    def pieces(self, batch: Batch) -> Pieces:
        """Advantage 1/(|P| T_i) on right tokens, -w_j/T_j on wrong ones, w the softmax of s/tau over N; ratio 1 or rho."""
        layout = batch.layout
        right, wrong = self.sides(batch)
        s = self.scores(batch).detach()
        hardness = torch.zeros_like(s) if math.isinf(self.tau) else s / self.tau
        excess = hardness - layout.to_sequences(group_log_mean_exp(hardness, layout, wrong))
        weight = torch.where(wrong, excess, torch.zeros_like(s)).exp()
        n_right, n_wrong = (layout.to_sequences(layout.group_count(side).clamp(min=1)) for side in (right, wrong))
        share = right / n_right - wrong * weight / n_wrong
        advantage = layout.to_tokens(share / layout.seq_count(batch.mask).clamp(min=1))
        mask, ratio = self.active(batch), torch.ones_like(advantage)
        if self.score == "ratio":
            ratio = log_ratio(batch.logp.detach(), batch.old_logp, batch.mask).exp()
            mask = mask & inside_limit(batch.logp.detach(), batch.old_logp, batch.mask)
        return Pieces(mask.to(ratio.dtype), ratio, advantage)

    def formula(self) -> str:
        s = "log pi_it" if self.score == "log" else "pi_it/pi_old_it"
        hard = "mean_N s" if math.isinf(self.tau) else f"{self.tau:g} log mean_N exp(s / {self.tau:g})"
        return f"l = -(mean_P s - {hard}),  s_i = mean_t {s},  P: R >= {self.right:g}, N: R <= {self.wrong:g}"


@dataclass(frozen=True)
class HingeKL(Regulariser):
    """A one-sided squared penalty on leaving the old policy, instead of a clip: gradient of (beta/2) [K - delta]_+^2.

        K = mean over counted tokens of (log pi_old - log pi), the k1 estimate of KL(pi_old || pi)
        l_t = sg[max(K - delta, 0)] (log pi_old_t - log pi_t)

    K is of the whole minibatch under the current policy; the official code takes each micro-batch.  Inside the
    region, also where the estimate is negative, the gradient is exactly 0 and nothing is computed for it.  Use
    it with an average over all tokens, which makes the sum that of sg[...] K.
    Source: DisCO (arXiv 2505.12366), constrained objective; Optimization-AI/DisCO.
    """

    source = "DisCO (arXiv 2505.12366); Optimization-AI/DisCO: verl core_algos.py"
    prepares: ClassVar[Mapping[str, str]] = {"kl_excess": "prompt"}
    beta: float = 1e3
    delta: float = 1e-4

    def __post_init__(self) -> None:
        if self.beta < 0 or self.delta < 0:
            raise ConfigError(f"HingeKL needs beta >= 0 and delta >= 0, got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logp", "old_logp", "current_logp", "mask") if self.beta else ()

    @property
    def coefficient(self) -> float:
        return self.beta

    def prepare(self, batch: Batch) -> Mapping[str, Tensor]:
        gap = log_ratio(batch.old_logp, batch.current_logp, batch.mask)
        mean = gap.sum() / batch.mask.sum().clamp(min=1)
        return {"kl_excess": (mean - self.delta).clamp(min=0)}

    def _excess(self, batch: Batch) -> Tensor:
        return batch.layout.to_tokens(batch.layout.to_sequences(batch.kl_excess))

    def active(self, batch: Batch) -> Tensor:
        active: Tensor = batch.mask & (self._excess(batch) > 0)
        return active

    def __call__(self, batch: Batch) -> Tensor:
        return self._excess(batch) * log_ratio(batch.old_logp, batch.logp, batch.mask)

    def formula(self) -> str:
        return f"+ {self.beta:g} * sg[max(K - {self.delta:g}, 0)] K,  K = mean_t (log pi_old - log pi)"
