"""Credit assignment inside a response: who among its tokens earns the advantage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.part import LOG_RATIO_LIMIT, Credit, Signal
from unipo.signals import Evidence


def evidence_weight(delta: Tensor, advantage: Tensor, layout: Layout, clip: float) -> Tensor:
    """w_t = clip(exp(sign(A_i) delta_t), 1 - clip, 1 + clip). delta, advantage: [T] nats, any. Returns [T].

    The sign is that of the response's summed advantage.  No gradient.
    Source: CEPO (arXiv 2605.19436); ahmedheakl/CEPO.
    """
    sign = layout.to_tokens(torch.sign(layout.seq_sum(advantage)))
    exponent = (sign * delta.detach()).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return exponent.exp().clamp(1 - clip, 1 + clip)


def linear_decay(strength: float, step: int, decay_steps: int, offset: int) -> float:
    """strength * max(0, 1 - (step - offset)/decay_steps); constant if decay_steps is 0. step counts from 1."""
    if decay_steps == 0:
        return strength
    return strength * min(1.0, max(0.0, 1 - (step - offset) / decay_steps))


@dataclass(frozen=True)
class EvidenceCredit(Credit):
    """Rescale each token's advantage by how much more likely it is under right than under other evidence.

        delta_t = lp+_t - lp-_t;   A_t <- A_t [(1 - lambda) + lambda clip(exp(sign(A) delta_t), 1-clip, 1+clip)]

    The sign and base size stay the verifier's: |A_t / A| lies in [1 - lambda clip, 1 + lambda clip].
    contrastive (CEPO): lp- is under a wrong answer of the same group.  Otherwise (RLSD): lp- is the plain
    policy's.  lambda decays linearly to 0 over decay_steps (0: constant); at 0 the extra passes are skipped.
    CEPO's schedule starts at lambda in step 1 (offset 1), RLSD's code one notch below (offset 0).
    Source: CEPO (arXiv 2605.19436), ahmedheakl/CEPO; RLSD (2604.03128) as re-implemented there.
    Unsure: whether the gain survives equal learning rates (its scripts give CEPO five times the baselines'
    rate); the shipped RLSD run conditions on an empty reference; the repository's README says clip 0.5 where
    its script says 0.2.
    """

    source = "CEPO (arXiv 2605.19436); ahmedheakl/CEPO"
    strength: float = 0.5
    clip: float = 0.2
    contrastive: bool = True
    decay_steps: int = 25
    offset: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1 or not 0 <= self.clip < 1 or self.decay_steps < 0:
            raise ConfigError(f"EvidenceCredit: 0 <= strength <= 1, 0 <= clip < 1, decay_steps >= 0; got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("advantage", "evidence_logp", "counter_logp") if self.strength else ("advantage",)

    @property
    def signals(self) -> tuple[Signal, ...]:
        last = self.decay_steps + self.offset - 1 if self.decay_steps else None
        return (Evidence(contrastive=self.contrastive, strength_until=last),) if self.strength else ()

    def __call__(self, batch: Batch) -> Tensor:
        advantage: Tensor = batch.advantage
        strength = linear_decay(self.strength, batch.step, self.decay_steps, self.offset)
        if strength == 0 or not batch.has("evidence_logp"):
            return advantage
        # Where the advantage is 0 the weight is not read, and log-probs there may be infinite.
        difference = batch.evidence_logp - batch.counter_logp
        delta = torch.where(advantage != 0, difference, torch.zeros_like(difference))
        weight = evidence_weight(delta, advantage, batch.layout, self.clip)
        return advantage * ((1 - strength) + strength * weight.to(advantage.dtype))

    def formula(self) -> str:
        lam = f"{self.strength:g}"
        if self.decay_steps:
            lam = f"{self.strength:g} max(0, 1 - (step - {self.offset})/{self.decay_steps})"
        other = "lp(wrong answer shown)" if self.contrastive else "lp(plain)"
        return (
            f"A_it *= (1 - l) + l clip(exp(sign(A_i) (lp(right answer shown) - {other})), "
            f"{1 - self.clip:g}, {1 + self.clip:g}),  l = {lam}"
        )
