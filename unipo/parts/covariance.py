"""Keeping entropy by the covariance of log-probability and advantage: which few tokens make it fall.

To first order an update changes a softmax policy's entropy by minus the covariance of log pi(a) with the change of
the logits: likely actions that are pushed up, and unlikely ones that are pushed down, sharpen it.
Source: The Entropy Mechanism (arXiv 2505.22617); PRIME-RL/Entropy-Mechanism-of-RL: verl/trainer/ppo/core_algos.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.chance import mix, uniform
from unipo.errors import ConfigError
from unipo.parts.objective import Clipped, PolicyGradient, unclipped
from unipo.parts.part import Pieces, Regulariser, inside_limit, log_ratio

_SOURCE = "The Entropy Mechanism (arXiv 2505.22617); PRIME-RL/Entropy-Mechanism-of-RL: core_algos.py"


def token_covariance(advantage: Tensor, logp: Tensor, mask: Tensor) -> Tensor:
    """Each token's part of the covariance: c_t = (A_t - mean A)(log pi_t - mean log pi) over counted tokens.

    advantage, logp: [T]; mask: [T] bool.  Returns [T] nats, 0 off the mask.  No gradient is meant to flow.
    Source: arXiv 2505.22617, eq. (10); official code core_algos.py, which counts over one micro-batch.
    """
    a, p = advantage[mask], logp[mask]
    out = torch.zeros(len(mask), dtype=torch.promote_types(a.dtype, p.dtype), device=mask.device)
    out[mask] = (a - a.mean()) * (p - p.mean())
    return out


def share_of(count: int, share: float) -> int:
    """max(1, floor(share * count)) tokens; none of none."""
    return min(count, max(1, int(share * count)))


def _check_share(part: ClipCov | CovarianceKL) -> None:
    if not 0 < part.share <= 1:
        raise ConfigError(f"{type(part).__name__}.share is a share of the counted tokens in (0, 1], got {part.share}")


@dataclass(frozen=True)
class ClipCov(Clipped):
    """PPO-clip without the gradient of a few random tokens of high covariance.

        candidates = {t : above < c_t < below, not cut by the ratio's clip};   c_t: see `token_covariance`
        max(1, floor(share N)) of them, drawn uniformly, get loss 0; N = counted tokens; denominators keep them

    N, c and the draw are over the whole minibatch (the paper's batch); the official code takes each micro-batch.
    The draw is a function of the response, the position and the step.  low, high: the ratio's clip, 1 and 1 in the
    released scripts, which is practically off.
    Source: arXiv 2505.22617, Clip-Cov; core_algos.py: compute_policy_loss_clip_cov.
    """

    source = _SOURCE
    prepares: ClassVar[Mapping[str, str]] = {"covariance_dropped": "token"}
    low: float = 1.0
    high: float = 1.0
    share: float = 2e-4
    above: float = 1.0
    below: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share(self)
        if not self.above < self.below:
            raise ConfigError(f"ClipCov needs above < below, got {self.above} and {self.below}")

    @property
    def needs(self) -> tuple[str, ...]:
        return (*super().needs, "current_logp", "sample_id")

    def prepare(self, batch: Batch) -> Mapping[str, Tensor]:
        mask, layout = batch.mask, batch.layout
        covariance = token_covariance(batch.advantage, batch.current_logp, mask)
        ratio = log_ratio(batch.current_logp, batch.old_logp, mask).exp()
        alive = unclipped(ratio, batch.advantage, self.low, self.high, self.dual)
        candidates = mask & alive & (covariance > self.above) & (covariance < self.below)
        places = candidates.nonzero().flatten()
        seed = mix(layout.to_tokens(batch.sample_id)[places]) + batch.step
        order = uniform(seed, layout.token_position[places]).argsort()
        dropped = torch.zeros_like(mask)
        dropped[places[order[: share_of(int(mask.sum()), self.share)]]] = True
        return {"covariance_dropped": dropped}

    def active(self, batch: Batch) -> Tensor:
        active: Tensor = super().active(batch) & ~batch.covariance_dropped
        return active

    def __call__(self, batch: Batch) -> Tensor:
        loss = super().__call__(batch)
        return torch.where(batch.covariance_dropped, torch.zeros_like(loss), loss)

    def pieces(self, batch: Batch) -> Pieces:
        plain = super().pieces(batch)
        return Pieces(plain.mask * ~batch.covariance_dropped, plain.ratio, plain.advantage)

    def formula(self) -> str:
        return (
            f"{super().formula()};  l_it = 0 for max(1, floor({self.share:g} N)) random tokens with "
            f"{self.above:g} < (A - mean A)(log pi - mean log pi) < {self.below:g}"
        )


@dataclass(frozen=True)
class ImportanceWeighted(PolicyGradient):
    """The surrogate without any clip: l_t = -rho_t A_t,  rho = pi/pi_old, with its gradient.

    Source: conservative policy iteration, as in PPO (arXiv 1707.06347), eq. (6).
    """

    source = "PPO (arXiv 1707.06347), eq. (6)"

    def __call__(self, batch: Batch) -> Tensor:
        ratio = log_ratio(batch.logp, batch.old_logp, batch.mask).exp()
        loss: Tensor = -ratio * batch.advantage
        return loss

    def pieces(self, batch: Batch) -> Pieces:
        ratio = log_ratio(batch.logp.detach(), batch.old_logp, batch.mask).exp()
        alive = inside_limit(batch.logp.detach(), batch.old_logp, batch.mask)
        return Pieces(alive.to(ratio.dtype), ratio, batch.advantage)

    def formula(self) -> str:
        return "l_it = -rho_it A_it,  rho = pi/pi_old"


@dataclass(frozen=True)
class CovarianceKL(Regulariser):
    """beta |log pi - log pi_old| on the tokens of highest covariance: those that have moved of K = max(1, floor(share N)).

    N: counted tokens.  The absolute log-ratio to the old policy, not to a reference.  It has no gradient where the two
    are equal: a token whose log-prob has not moved at all is left out, and none takes its place.  At a batch's first
    update that is all of them, so it acts from the second on.  N and the ranking are over the whole minibatch (the
    paper's batch); the official code takes each micro-batch.
    Source: arXiv 2505.22617, KL-Cov; core_algos.py: compute_policy_loss_kl_cov (k_percent is in percent there).
    """

    source = _SOURCE
    prepares: ClassVar[Mapping[str, str]] = {"covariance_selected": "token"}
    beta: float = 1.0
    share: float = 2e-3

    def __post_init__(self) -> None:
        _check_share(self)
        if self.beta < 0:
            raise ConfigError(f"CovarianceKL.beta must not be negative, got {self.beta}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("advantage", "logp", "old_logp", "current_logp", "mask") if self.beta else ()

    @property
    def coefficient(self) -> float:
        return self.beta

    def prepare(self, batch: Batch) -> Mapping[str, Tensor]:
        mask = batch.mask
        covariance = token_covariance(batch.advantage, batch.current_logp, mask)
        highest = covariance.masked_fill(~mask, float("-inf")).topk(share_of(int(mask.sum()), self.share)).indices
        selected = torch.zeros_like(mask)
        # Where nothing moved, |.| has no slope: old and new log-probs are then one number, computed twice.
        selected[highest] = (batch.current_logp != batch.old_logp)[highest]
        return {"covariance_selected": selected}

    def active(self, batch: Batch) -> Tensor:
        selected: Tensor = batch.covariance_selected
        return selected

    def __call__(self, batch: Batch) -> Tensor:
        return log_ratio(batch.logp, batch.old_logp, batch.covariance_selected).abs()

    def formula(self) -> str:
        return (
            f"+ {self.beta:g} * |log pi - log pi_old| on the max(1, floor({self.share:g} N)) tokens of highest "
            "(A - mean A)(log pi - mean log pi), less those with pi = pi_old"
        )
