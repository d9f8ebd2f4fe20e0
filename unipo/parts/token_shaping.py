"""Shaping of single tokens' rewards, and bounds on the response's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.parts.part import Shaping
from unipo.parts.regulariser import FORMULAS, check_estimator, kl_estimate


def adapted_beta(beta: float, kl: float, target: float, responses: int, horizon: int) -> float:
    """beta * (1 + clip(KL/target - 1, -0.2, 0.2) * n / horizon): more weight while the policy is too far away.

    kl, target: nats per response; responses: n in this batch; horizon: responses over which it adapts.
    Source: Ziegler et al. (arXiv 1909.08593), sec. 2.2; huggingface/trl: AdaptiveKLController.
    """
    error = min(0.2, max(-0.2, kl / target - 1))
    return beta * (1 + error * responses / horizon)


@dataclass(frozen=True)
class KLPerToken(Shaping):
    """Each token pays for leaving the reference: r_t -= beta k(log pi_old - log pi_ref), without gradient.

    The penalty is a reward of its own token, so that a value model and GAE see where it falls; summed over a response
    it is `KLInReward`.  target: nats per response to which beta adapts after every batch over `horizon` responses
    (`adapted_beta`); 0 keeps beta fixed.
    Source: InstructGPT (arXiv 2203.02155), eq. (2), applied per token as in huggingface/trl: ppo_trainer.py.
    """

    source = "InstructGPT (arXiv 2203.02155), eq. (2); huggingface/trl: ppo_trainer.py"
    adds: ClassVar[tuple[str, ...]] = ("token_reward",)
    beta: float = 0.05
    estimator: str = "k1"
    target: float = 0.0
    horizon: int = 10_000

    def __post_init__(self) -> None:
        check_estimator(self.estimator)
        if self.beta < 0 or self.target < 0 or self.horizon < 1:
            raise ConfigError(f"KLPerToken: beta, target >= 0 and horizon >= 1, got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        if not self.beta:
            return ("token_reward",)
        return ("token_reward", "old_logp", "reference_logp", "mask")

    @property
    def state_key(self) -> str | None:
        return "kl_per_token" if self.target and self.beta else None

    def strength(self, batch: Batch) -> float:
        """The coefficient in force for this batch."""
        state = batch.states.get(self.state_key, {}) if self.state_key else {}
        return float(state.get("beta", self.beta))

    def _kl(self, batch: Batch, estimator: str) -> Tensor:
        return kl_estimate(batch.old_logp, batch.reference_logp, batch.mask, estimator)

    def __call__(self, batch: Batch) -> Tensor:
        before: Tensor = batch.token_reward
        if not self.beta:
            return before
        return before - self.strength(batch) * self._kl(batch, self.estimator).to(before.dtype)

    def remember(self, batch: Batch) -> Mapping[str, Any]:
        counted = batch.layout.seq_count(batch.mask) > 0
        if not bool(counted.any()):
            return {"beta": self.strength(batch)}
        kl = float(batch.layout.seq_sum(self._kl(batch, "k1"))[counted].mean())
        return {"beta": adapted_beta(self.strength(batch), kl, self.target, int(counted.sum()), self.horizon)}

    def formula(self) -> str:
        if not self.beta:
            return "r_t"
        adapts = f";  beta adapts to {self.target:g} nats per response" if self.target else ""
        return f"r_t -= {self.beta:g} * ({FORMULAS[self.estimator]}),  d = log pi_old - log pi_ref{adapts}"


@dataclass(frozen=True)
class TruncatedReward(Shaping):
    """A response cut off by the token budget gets `value` in place of its reward.

    Source: SPO (AIFrameResearch/SPO: an unfinished response has reward 0); DR-PO (Cornell-RL/drpo: -1).
    """

    source = "AIFrameResearch/SPO; Cornell-RL/drpo"
    value: float = 0.0

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "truncated")

    def __call__(self, batch: Batch) -> Tensor:
        reward: Tensor = batch.reward
        truncated: Tensor = batch.truncated
        return torch.where(truncated, torch.full_like(reward, self.value), reward)

    def formula(self) -> str:
        return f"R_i = {self.value:g} if response i was cut off"


@dataclass(frozen=True)
class MissingEndPenalty(Shaping):
    """R_i -= penalty where the response has no end token. Source: huggingface/trl: missing_eos_penalty."""

    source = "huggingface/trl: ppo_config.py, missing_eos_penalty"
    penalty: float = 1.0

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "truncated")

    def __call__(self, batch: Batch) -> Tensor:
        reward: Tensor = batch.reward
        truncated: Tensor = batch.truncated
        return reward - self.penalty * truncated.to(reward.dtype)

    def formula(self) -> str:
        return f"R_i -= {self.penalty:g} if response i was cut off"


@dataclass(frozen=True)
class RewardClip(Shaping):
    """R_i clipped to [low, high]. Source: OpenRLHF/OpenRLHF: reward_clip_range, 10 either way."""

    source = "OpenRLHF/OpenRLHF: reward_clip_range"
    low: float = -10.0
    high: float = 10.0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ConfigError(f"RewardClip needs low <= high, got {self.low} and {self.high}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward",)

    def __call__(self, batch: Batch) -> Tensor:
        reward: Tensor = batch.reward
        return reward.clamp(self.low, self.high)

    def formula(self) -> str:
        return f"R_i = clip(R_i, {self.low:g}, {self.high:g})"
