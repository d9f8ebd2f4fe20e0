"""Demonstrations learnt by policy gradient: every position is a rollout of one token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.parts.part import Objective, Resampled


@dataclass(frozen=True)
class OneTokenRollout(Objective):
    """OTR: K tokens drawn at every position of a demonstration, reward 1 for the demonstrated one, beta for others.

        l_t = -(1/K) sum_j R(a_j) log pi(a_j | x, y_<t),   a_j ~ softmax(logits / kappa),   R = 1 if a_j = y_t else beta
            = -(n/K) log pi(y_t) - (beta/K) sum_{j: a_j != y_t} log pi(a_j),   n = draws that are y_t

    Draws carry no gradient and no ratio corrects for kappa; the context is always the demonstration's.  With
    kappa = 1 the expected gradient is (1 - beta) pi(y_t) grad log pi(y_t): DFT's, scaled.  A token that is never drawn
    gets no pull, so improbable ones are learnt slowly.  The draws are a function of the response, the place and
    the step, and come from the logits of the pass itself.
    Source: One-Token Rollout (arXiv 2509.26313).  No official code.
    Unsure: kappa and beta are recalled; the mean over the batch is assumed.
    """

    source = "One-Token Rollout (arXiv 2509.26313)"
    count: int = 256
    temperature: float = 1.3
    beta: float = -0.1

    def __post_init__(self) -> None:
        if self.count < 1 or not self.temperature > 0 or not self.beta <= 1:
            raise ConfigError(f"OneTokenRollout needs count >= 1, temperature > 0 and beta <= 1, got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logp", "resampled_logp", "resampled_hits", "mask", "sample_id")

    @property
    def resampled(self) -> Resampled:
        return Resampled(self.count, self.temperature)

    def __call__(self, batch: Batch) -> Tensor:
        mask, nothing = batch.mask, torch.zeros_like(batch.logp)
        hit = torch.where(mask, batch.resampled_hits, nothing).detach() * torch.where(mask, batch.logp, nothing)
        others = torch.where(mask, batch.resampled_logp, nothing) - hit
        return -hit - self.beta * others

    def formula(self) -> str:
        return (
            f"l_t = -(1/{self.count}) sum_j R_j log pi(a_j),  a_j ~ softmax(logits/{self.temperature:g}),  "
            f"R_j = 1 if a_j = y_t else {self.beta:g}"
        )
