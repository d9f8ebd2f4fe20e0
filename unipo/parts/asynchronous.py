"""Training on what older weights wrote: how old it may be, and an objective that keeps two old policies apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.parts.objective import Clipped, clipped_surrogate, unclipped
from unipo.parts.part import Pieces, inside_limit, log_ratio
from unipo.parts.source import OnPolicy


def may_start(accepted: int, running: int, version: int, batch: int, staleness: int) -> bool:
    """May one more rollout start, so that none is trained on more than `staleness` versions after it began?

        accepted + running < (staleness + version + 1) * batch
    version: batches trained so far; batch: rollouts per batch; accepted: rollouts finished so far, trained on or
    waiting; running: those being written.  The bound holds if rollouts are trained on in the order in which they
    started; in the order in which they finish, a slow one is overtaken and can grow older.
    Source: AReaL (arXiv 2505.24298), staleness control; inclusionAI/AReaL.
    """
    return accepted + running < (staleness + version + 1) * batch


@dataclass(frozen=True)
class Asynchronous(OnPolicy):
    """Batches are sampled as early as `may_start` lets them: each is trained on up to `staleness` batches later.

    In one process generation takes no training time, so the queue is always as full as allowed: batch k is written
    by the weights after k - staleness batches (or the first ones) and waits.  staleness 0 is OnPolicy.  Waiting
    batches are part of a checkpoint; those that still wait when a run ends are not trained on.  A response is
    written by one version here; `version` and `lag` are per token all the same, and the parts read them so.
    """

    source = "AReaL (arXiv 2505.24298); inclusionAI/AReaL"
    adds: ClassVar[tuple[str, ...]] = (*OnPolicy.adds, "lag")
    staleness: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.staleness < 0:
            raise ConfigError(f"Asynchronous.staleness must not be negative, got {self.staleness}")

    @property
    def ahead(self) -> int:
        return self.staleness

    def measure(self, batch: Batch) -> Mapping[str, float]:
        if not len(batch.lag):
            return {}
        lag = batch.lag.to(torch.float64)
        return {"staleness/mean": float(lag.mean()), "staleness/max": float(lag.max())}

    def formula(self) -> str:
        return f"{super().formula().replace('pi_old', 'mu')}; mu up to {self.staleness} batches older than pi_old"


def log_linear_share(lag: Tensor) -> Tensor:
    """How far from the sampler to the trained policy the policy before this batch lies: lag / (lag + 1).

    lag: [T] versions between sampler and the policy before this batch.  With v_theta = v_prox + 1 it is
    (v_prox - v_behave) / (v_theta - v_behave).  Source: inclusionAI/AReaL, prox_logp_method="loglinear".
    """
    return lag / (lag + 1)


@dataclass(frozen=True)
class LogLinearDecoupled(Clipped):
    """Decoupled PPO without the pass for the policy before this batch: its log-probs are interpolated.

        log prox_t = log mu_t + lag/(lag + 1) (sg[log pi_t] - log mu_t)
        l_t = w_t PPO(u_t = pi/prox, A_t),  w_t = sg[prox/mu],  0 where w_t > cap

    A token of the last version (lag 0) has prox = mu.  A dropped token keeps its place in the denominator.
    Use it with credit=(), since the weight is inside.
    Source: inclusionAI/AReaL, prox_logp_method="loglinear"; decoupled objective arXiv 2110.00641.
    """

    source = "inclusionAI/AReaL: prox_logp_method=loglinear; Decoupled PPO (arXiv 2110.00641)"
    cap: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cap >= 1:
            raise ConfigError(f"LogLinearDecoupled.cap must be at least 1, got {self.cap}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("advantage", "logp", "behaviour_logp", "lag", "mask")

    def _ratios(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """([T] u with gradient, [T] w or 0 where it is dropped)."""
        moved = log_ratio(batch.logp.detach(), batch.behaviour_logp, batch.mask)
        step = log_linear_share(batch.lag).to(moved.dtype) * moved
        weight = step.exp()
        ratio = log_ratio(batch.logp, batch.behaviour_logp + step, batch.mask).exp()
        return ratio, torch.where(weight <= self.cap, weight, torch.zeros_like(weight))

    def __call__(self, batch: Batch) -> Tensor:
        ratio, weight = self._ratios(batch)
        return weight * clipped_surrogate(ratio, batch.advantage, self.low, self.high, self.dual)

    def pieces(self, batch: Batch) -> Pieces:
        ratio, weight = (x.detach() for x in self._ratios(batch))
        alive = unclipped(ratio, batch.advantage, self.low, self.high, self.dual) & (weight > 0)
        alive = alive & inside_limit(batch.logp.detach(), batch.behaviour_logp, batch.mask)
        return Pieces(alive.to(ratio.dtype), weight * ratio, batch.advantage)

    def formula(self) -> str:
        plain = super().formula().replace("pi/pi_old", "pi/prox")
        return f"w_it ({plain}),  w = prox/mu <= {self.cap:g},  log prox = log mu + lag/(lag+1) (log pi - log mu)"
