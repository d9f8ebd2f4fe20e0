"""Terms added to the loss: KL to the reference, entropy.

Which KL estimator *and where it enters* decides the gradient that is followed.  Expected on-policy gradients of
one decision (d = log pi - log pi_ref; arXiv 2506.09477, 2512.02556, checked in tests/parts/test_kl.py):

    in the loss:   k1 -> 0;  k2 -> grad KL(pi||ref);  k3 -> grad KL(ref||pi);  corrected k1, k3 -> grad KL(pi||ref)
    in the reward: k1 -> grad KL(pi||ref);  k2, k3 -> neither        (see `unipo.parts.shaping.KLInReward`)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError, unknown
from unipo.parts.part import Regulariser, log_ratio


def k1(d: Tensor) -> Tensor:
    """d: unbiased for KL(pi||ref), may be negative, high variance."""
    return d


def k2(d: Tensor) -> Tensor:
    """d^2 / 2: biased value, never negative; its gradient in the loss is that of KL(pi||ref)."""
    return d * d / 2


def k3(d: Tensor) -> Tensor:
    """exp(-d) - 1 + d: unbiased value, never negative; in the loss its gradient is that of KL(ref||pi)."""
    return torch.expm1(-d) + d


def k3_straight_through(d: Tensor) -> Tensor:
    """Value of k3 with the gradient of k2, that of KL(pi||ref). verl calls it k3+."""
    return k3(d).detach() + k2(d) - k2(d).detach()


def k_abs(d: Tensor) -> Tensor:
    """|d|: biased, robust."""
    return d.abs()


ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k3+": k3_straight_through,
    "abs": k_abs,
}
FORMULAS = {"k1": "d", "k2": "d^2/2", "k3": "exp(-d) - 1 + d", "k3+": "value k3, gradient k2", "abs": "|d|"}


def check_estimator(name: str) -> None:
    """Raise ConfigError for a KL estimator nobody knows, with the nearest one there is."""
    if name not in ESTIMATORS:
        raise unknown("KL estimator", name, ESTIMATORS)


def kl_estimate(logp: Tensor, reference_logp: Tensor, mask: Tensor, estimator: str) -> Tensor:
    """Per-token KL estimate from the sampled token. logp, reference_logp: [T]; mask: [T] bool.

    Returns [T] nats, 0 off the mask; d is clamped to +-20 first (verl, NeMo-RL).
    Source: Schulman 2020, "Approximating KL divergence".
    """
    check_estimator(estimator)
    return ESTIMATORS[estimator](log_ratio(logp, reference_logp, mask))


@dataclass(frozen=True)
class ReferenceKL(Regulariser):
    """beta * KL(policy || reference), estimated at the sampled token and differentiated through log pi.

    corrected: multiply by rho = pi / sg[pi_old], with gradient through rho: the gradient of k1 and k3 is then
    that of KL(pi||ref), also off-policy (NeMo-RL's default; DeepSeek-V3.2).
    Source: DeepSeekMath (arXiv 2402.03300), eq. (4) (k3, uncorrected).
    """

    source = "DeepSeekMath (arXiv 2402.03300), eq. (4); Schulman 2020"
    beta: float = 0.04
    estimator: str = "k3"
    corrected: bool = False

    def __post_init__(self) -> None:
        check_estimator(self.estimator)
        if self.beta < 0:
            raise ConfigError(f"ReferenceKL.beta must not be negative, got {self.beta}")

    @property
    def needs(self) -> tuple[str, ...]:
        if self.beta == 0:
            return ()
        return ("logp", "reference_logp", "mask", *(("old_logp",) if self.corrected else ()))

    @property
    def coefficient(self) -> float:
        return self.beta

    def __call__(self, batch: Batch) -> Tensor:
        value = kl_estimate(batch.logp, batch.reference_logp, batch.mask, self.estimator)
        if not self.corrected:
            return value
        return log_ratio(batch.logp, batch.old_logp, batch.mask).exp() * value

    def formula(self) -> str:
        rho = "rho_it * " if self.corrected else ""
        return f"+ {self.beta:g} * {rho}({FORMULAS[self.estimator]}),  d = log pi - log pi_ref"


@dataclass(frozen=True)
class EntropyBonus(Regulariser):
    """Minus coefficient * H(pi(.|prefix)), averaged like the main objective.

    Source: PPO (arXiv 1707.06347), eq. (9). Entropy in nats, of the distribution at the sampling temperature.
    """

    source = "PPO (arXiv 1707.06347), eq. (9)"
    strength: float = 0.0

    @property
    def needs(self) -> tuple[str, ...]:
        return ("entropy", "mask") if self.strength else ()

    @property
    def coefficient(self) -> float:
        return self.strength

    def __call__(self, batch: Batch) -> Tensor:
        return -torch.where(batch.mask, batch.entropy, torch.zeros_like(batch.entropy))

    def formula(self) -> str:
        return f"- {self.strength:g} * H(pi(.|x, y_<t))"
