"""Reward to reward: penalties that depend on length or on divergence from the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.parts.part import Shaping
from unipo.parts.regulariser import FORMULAS, check_estimator, kl_estimate


def soft_overlong(length: Tensor, limit: int, cache: int) -> Tensor:
    """DAPO's length term: 0 up to limit - cache, falling to -1 at the limit, -1 beyond.

    length: [S] tokens.  Returns [S] in [-1, 0].  cache = 0 is a hard step.
    Source: DAPO (arXiv 2503.14476), eq. (13); verl's form is not clamped beyond the limit, which generation
    never exceeds.
    """
    if cache == 0:
        return -(length > limit).to(torch.float32)
    return -((length - (limit - cache)) / cache).clamp(0, 1).to(torch.float32)


@dataclass(frozen=True)
class SoftOverlong(Shaping):
    """Adds `strength` times `soft_overlong` to the reward.

    limit, cache: tokens; limit 0 means the run's generation budget, and cache is then `fraction` of it (the
    paper's 4096 of 20480 is a fifth).
    """

    source = "DAPO (arXiv 2503.14476), eq. (13)"
    limit: int = 0
    cache: int = 0
    fraction: float = 0.2
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.limit < 0 or self.cache < 0 or not 0 <= self.fraction <= 1 or (self.limit and self.cache > self.limit):
            raise ConfigError(f"SoftOverlong: 0 <= cache <= limit and 0 <= fraction <= 1, got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward",)

    def __call__(self, batch: Batch) -> Tensor:
        if self.limit == 0:
            raise ConfigError("SoftOverlong: set limit, or let the run fill in its token budget")
        cache = self.cache or round(self.fraction * self.limit)
        penalty = soft_overlong(batch.layout.seq_lengths, self.limit, cache)
        reward: Tensor = batch.reward
        return reward + self.strength * penalty.to(reward.dtype)

    def bound_to(self, max_tokens: int) -> Self:
        return self if self.limit else replace(self, limit=max_tokens)

    def formula(self) -> str:
        limit = str(self.limit or "max_tokens")
        cache = str(
            self.cache or (round(self.fraction * self.limit) if self.limit else f"{self.fraction:g} max_tokens")
        )
        return f"R_i += {self.strength:g} * -clip((T_i - ({limit} - {cache})) / {cache}, 0, 1)"


@dataclass(frozen=True)
class KLInReward(Shaping):
    """R_i <- R_i - beta sum_t k(log pi_old - log pi_ref), detached.

    With k1 and an unbiased baseline this follows the exact gradient of KL(pi||ref) over whole responses; k2 and
    k3 in the reward follow neither direction of the KL.
    Source: RLOO, Back to Basics (arXiv 2402.14740), sec. 3 (k1; which estimator its authors used per token is
    not said); InstructGPT (arXiv 2203.02155).
    """

    source = "Back to Basics (arXiv 2402.14740), sec. 3"
    beta: float = 0.05
    estimator: str = "k1"

    def __post_init__(self) -> None:
        check_estimator(self.estimator)
        if self.beta < 0:
            raise ConfigError(f"KLInReward.beta must not be negative, got {self.beta}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "old_logp", "reference_logp", "trainable") if self.beta else ("reward",)

    def __call__(self, batch: Batch) -> Tensor:
        reward: Tensor = batch.reward
        if not self.beta:
            return reward
        kl = kl_estimate(batch.old_logp, batch.reference_logp, batch.trainable, self.estimator)
        return reward - self.beta * batch.layout.seq_sum(kl).to(reward.dtype)

    def formula(self) -> str:
        if not self.beta:
            return "R_i"
        return f"R_i -= {self.beta:g} * sum_t ({FORMULAS[self.estimator]}),  d = log pi_old - log pi_ref"
