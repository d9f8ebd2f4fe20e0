"""Corrections for samples that another policy wrote: weights and gates on r = pi_old / mu.

mu is the policy that sampled (`behaviour_logp`: other kernels, other precision, older weights), pi_old the trainer's
policy before the update (`old_logp`).  These parts are credits: they multiply advantages after everything else has
been decided, which multiplies the policy term of any objective that is positively homogeneous in A, as clipped
surrogates and score functions are, and leaves KL terms and denominators alone.  A token that is dropped keeps its
place in the denominator (TRL, OpenRLHF, AReaL; verl's rejection shrinks the mask instead, a factor N/N_kept).  With
r = 1 nothing changes.  Where `old_logp` is taken from the sampler ("bypass"), r is 1 and cannot be counted twice.
With objectives that have one ratio per response use level 'sequence' or 'geometric'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.part import LOG_RATIO_LIMIT, Credit, log_ratio
from unipo.parts.regulariser import FORMULAS, check_estimator, kl_estimate

LEVELS = ("token", "sequence", "geometric")
_OF = {"token": "r_t", "sequence": "prod_t r_t", "geometric": "(prod_t r_t)^(1/T)"}
_SOURCE = "volcengine/verl: rollout_corr; huggingface/trl: grpo_trainer.py; OpenRLHF/OpenRLHF"


def mismatch_ratio(old: Tensor, behaviour: Tensor, layout: Layout, mask: Tensor, level: str) -> Tensor:
    """[T] r at this level, for every counted token; 1 off the mask. old, behaviour: [T] log-probs; mask: [T] bool.

    token: pi_old/mu of the token; sequence: the product over the response; geometric: its T-th root.  Logarithms are
    clamped to +-20 before exp, token by token and as a sum.
    """
    token = log_ratio(old, behaviour, mask)
    if level == "token":
        return token.exp()
    whole = layout.seq_sum(token, mask) if level == "sequence" else layout.seq_mean(token, mask)
    spread = layout.to_tokens(whole.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp())
    return torch.where(mask, spread, torch.ones_like(spread))


def effective_share(weight: Tensor) -> Tensor:
    """Effective sample size over N: (sum w)^2 / (N sum w^2), 1 where all weights are equal. weight: [n], n > 0."""
    w = weight / weight.mean()
    return 1 / (w * w).mean()


@dataclass(frozen=True)
class _Mismatch(Credit):
    """Base: reads both log-probs of every token and measures how far they are apart."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("advantage", "old_logp", "behaviour_logp", "mask")

    def ratio(self, batch: Batch, level: str) -> Tensor:
        """See `mismatch_ratio`."""
        if level not in LEVELS:
            raise ConfigError(f"{type(self).__name__}.level is one of {', '.join(LEVELS)}, got {level!r}")
        return mismatch_ratio(batch.old_logp, batch.behaviour_logp, batch.layout, batch.mask, level)


@dataclass(frozen=True)
class MismatchWeight(_Mismatch):
    """A_t <- A_t w,  w = clip(r, floor, cap), constant. Truncated importance sampling (TIS).

    cap: 2 is usual, 1.5 to 5; floor 0 never raises a small ratio (OpenRLHF: 0.5 and 5).  normalised: divide w by its
    mean over all counted tokens (level token) or responses of the batch.  At level sequence the weight is unbiased
    before it is truncated; at level token its bias grows with the square of the length.
    Source: "Your efficient RL framework secretly brings you off-policy training" (2025); libraries as in `_SOURCE`.
    """

    source = _SOURCE
    level: str = "token"
    cap: float = 2.0
    floor: float = 0.0
    normalised: bool = False

    def __post_init__(self) -> None:
        if self.level not in LEVELS or not 0 <= self.floor <= self.cap:
            raise ConfigError(f"MismatchWeight: level is one of {', '.join(LEVELS)}, 0 <= floor <= cap; got {self}")

    def weight(self, batch: Batch) -> Tensor:
        """[T] w."""
        layout, mask = batch.layout, batch.mask
        weight = self.ratio(batch, self.level).clamp(self.floor, self.cap)
        if not self.normalised or not bool(mask.any()):
            return weight
        if self.level == "token":
            return weight / weight[mask].mean()
        counts = layout.seq_count(mask) > 0
        return weight / layout.seq_mean(weight, mask)[counts].mean()

    @property
    def unit(self) -> str:
        return "token" if self.level == "token" else "response"

    def __call__(self, batch: Batch) -> Tensor:
        advantage: Tensor = batch.advantage
        return advantage * self.weight(batch).to(advantage.dtype)

    def measure(self, batch: Batch) -> Mapping[str, float]:
        if not bool(batch.mask.any()):
            return {}
        weight = self.weight(batch)[batch.mask]
        d = -log_ratio(batch.old_logp, batch.behaviour_logp, batch.mask)[batch.mask]
        return {
            "mismatch/weight": float(weight.mean()),
            "mismatch/weight_max": float(weight.max()),
            "mismatch/effective": float(effective_share(weight)),
            "mismatch/kl": float(d.mean()),
        }

    def formula(self) -> str:
        mean = " / mean" if self.normalised else ""
        return f"A_it *= clip({_OF[self.level]}, {self.floor:g}, {self.cap:g}){mean},  r = pi_old/mu"


@dataclass(frozen=True)
class _Gate(_Mismatch):
    """Base: A_t <- A_t where `open`, 0 elsewhere. Counts what it drops, as a share of the counted tokens."""

    def open(self, batch: Batch) -> Tensor:
        """[T] bool."""
        raise NotImplementedError

    def __call__(self, batch: Batch) -> Tensor:
        return torch.where(self.open(batch), batch.advantage, torch.zeros_like(batch.advantage))

    def measure(self, batch: Batch) -> Mapping[str, float]:
        mask = batch.mask
        return {"mismatch/dropped": float((~self.open(batch))[mask].double().mean())} if bool(mask.any()) else {}


@dataclass(frozen=True)
class MismatchGate(_Gate):
    """A_t <- A_t where low <= r <= high, 0 elsewhere. It does not weigh: follow it with a `MismatchWeight`.

    Token gates with bounds 0.5 and 5 and the ratio as weight are IcePop; a gate on the product with high 3 is TRL's
    sequence mask; one on the geometric mean within [0.999, 1.002] drops whole responses in seq-mask-TIS.  The bounds
    are on pi_old/mu; verl's k1 rejection bounds the inverse.
    Source: IcePop (2025); "When Speed Kills Stability" (2025); libraries as in `_SOURCE`.
    """

    source = _SOURCE
    level: str = "token"
    low: float = 0.0
    high: float = 5.0

    def __post_init__(self) -> None:
        if self.level not in LEVELS or not 0 <= self.low < self.high:
            raise ConfigError(f"MismatchGate: level is one of {', '.join(LEVELS)}, 0 <= low < high; got {self}")

    def open(self, batch: Batch) -> Tensor:
        """[T] bool."""
        ratio = self.ratio(batch, self.level)
        return (ratio >= self.low) & (ratio <= self.high)

    @property
    def unit(self) -> str:
        return "token" if self.level == "token" else "response"

    def formula(self) -> str:
        return f"A_it = 0 unless {self.low:g} <= {_OF[self.level]} <= {self.high:g},  r = pi_old/mu"


@dataclass(frozen=True)
class DivergenceGate(_Gate):
    """A_t <- A_t where a KL estimate between mu and pi_old stays below `limit`, 0 elsewhere.

    The estimate of KL(mu || pi_old) is k1, k2 or k3 of d = log mu - log pi_old.  over: 'token', or 'sum', 'mean',
    'max' of a response's tokens, which then stays or goes as a whole.
    Source: volcengine/verl: rollout_corr (rejection by k1, k2, k3).
    """

    source = _SOURCE
    estimator: str = "k3"
    over: str = "mean"
    limit: float = 0.01

    def __post_init__(self) -> None:
        check_estimator(self.estimator)
        if self.over not in ("token", "sum", "mean", "max") or not self.limit > 0:
            raise ConfigError(f"DivergenceGate: over is token, sum, mean or max, limit > 0; got {self}")

    def open(self, batch: Batch) -> Tensor:
        """[T] bool."""
        layout, mask = batch.layout, batch.mask
        kl = kl_estimate(batch.behaviour_logp, batch.old_logp, mask, self.estimator)
        if self.over == "token":
            return kl <= self.limit
        if self.over == "max":
            whole = layout.seq_max(torch.where(mask, kl, torch.full_like(kl, -torch.inf)))
        else:
            whole = layout.seq_sum(kl, mask) if self.over == "sum" else layout.seq_mean(kl, mask)
        return layout.to_tokens(whole <= self.limit)

    @property
    def unit(self) -> str:
        return "token" if self.over == "token" else "response"

    def formula(self) -> str:
        over = "" if self.over == "token" else f"{self.over}_t "
        return f"A_it = 0 unless {over}({FORMULAS[self.estimator]}) <= {self.limit:g},  d = log mu - log pi_old"
