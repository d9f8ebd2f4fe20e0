"""A sampler that is not quite the policy: it writes with weights rounded to a few bits, as fast engines do.

For experiments about the mismatch between sampler and trainer. Evaluation keeps the policy's own weights. Run it with
old_logp=recompute, or the trainer takes the sampler's log-probs for its own and no mismatch is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from unipo.errors import ConfigError
from unipo.method import Method
from unipo.parts.source import OnPolicy
from unipo.policy.model import Policy
from unipo.rollout.engine import Engine, Request, Rollout, Sampling
from unipo.rollout.local import LocalEngine
from unipo.training.samplers import SAMPLERS
from unipo.training.source import Sampler


@dataclass(frozen=True)
class Quantised(OnPolicy):
    """The policy samples with its matrices rounded to `bits` bits per weight, symmetrically, one scale per row."""

    bits: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits < 2:
            raise ConfigError(f"Quantised.bits must be at least 2, got {self.bits}")

    def formula(self) -> str:
        return f"{super().formula()}; y ~ mu, the policy with {self.bits}-bit weights"


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Each row w as s round(w/s), s = max|w| / (2^(bits-1) - 1); rows of zeros stay zero."""
    scale = weight.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.where(scale > 0, (weight / torch.where(scale > 0, scale, 1.0)).round() * scale, weight)


@contextmanager
def rounded_weights(policy: Policy, bits: int) -> Iterator[None]:
    """The policy's matrices rounded in place, and bit by bit what they were afterwards."""
    matrices = [p for _, p in policy.named_parameters() if p.ndim == 2]
    kept = [p.detach().clone() for p in matrices]
    try:
        with torch.no_grad():
            for p in matrices:
                p.copy_(rounded(p, bits))
        yield
    finally:
        with torch.no_grad():
            for p, before in zip(matrices, kept, strict=True):
                p.copy_(before)


class QuantisedEngine:
    """Another engine, asked while the policy's weights are rounded. Its log-probs are mu's, so not the trainer's."""

    exact = False

    def __init__(self, engine: Engine, policy: Policy, bits: int) -> None:
        self.engine, self.policy, self.bits = engine, policy, bits
        self.stats = engine.stats

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] | None = None
    ) -> list[list[Rollout]]:
        """See `unipo.rollout.engine.Engine.generate`; written with rounded weights."""
        if isinstance(self.engine, LocalEngine):
            self.engine.tape = None  # what rounded weights compute is not what the trainer would
        with rounded_weights(self.policy, self.bits):
            written = self.engine.generate(requests, sampling, progress)
        self.stats = self.engine.stats
        return written

    def sync(self) -> None:
        """See `unipo.rollout.engine.Engine.sync`."""
        self.engine.sync()


class QuantisedSampler(Sampler):
    """Serves `Quantised`: the usual sampler over a `QuantisedEngine`."""

    def begin(self, method: Method) -> None:
        assert isinstance(method.source, Quantised)
        self.engine = QuantisedEngine(self.engine, self.policy, method.source.bits)


SAMPLERS[Quantised] = QuantisedSampler
