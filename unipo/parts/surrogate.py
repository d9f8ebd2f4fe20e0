"""Importance-weighted surrogates without PPO's pessimism."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.parts.objective import PolicyGradient
from unipo.parts.part import Pieces, inside_limit, log_ratio


def capped_surrogate(ratio: Tensor, advantage: Tensor, cap: float | None) -> Tensor:
    """l = -min(rho, cap) A, whatever the sign of A; no cap: l = -rho A. ratio, advantage: same shape, unitless.

    Gradient -rho A below the cap and exactly 0 above it.
    Source: conservative policy iteration's surrogate, PPO (arXiv 1707.06347), eq. (6), and HPT (arXiv 2509.04419,
    TsinghuaC3I/Unify-Post-Training), without a cap; with one, the released PIPO (JacckMa/pipo_verl).
    """
    return -(ratio if cap is None else ratio.clamp(max=cap)) * advantage


@dataclass(frozen=True)
class CappedSurrogate(PolicyGradient):
    """See `capped_surrogate`. cap: absolute bound on the ratio (1.2, not 0.2); None for none."""

    source = "PPO (arXiv 1707.06347), eq. (6); HPT (arXiv 2509.04419); JacckMa/pipo_verl"
    cap: float | None = None

    def __post_init__(self) -> None:
        if self.cap is not None and self.cap <= 0:
            raise ConfigError(
                f"CappedSurrogate.cap is an absolute bound on the ratio, above 0 (or None); got {self.cap}"
            )

    def _ratio(self, batch: Batch) -> Tensor:
        return log_ratio(batch.logp, batch.old_logp, batch.mask).exp()

    def __call__(self, batch: Batch) -> Tensor:
        return capped_surrogate(self._ratio(batch), batch.advantage, self.cap)

    def pieces(self, batch: Batch) -> Pieces:
        ratio = self._ratio(batch).detach()
        alive = inside_limit(batch.logp.detach(), batch.old_logp, batch.mask)
        alive = alive if self.cap is None else alive & (ratio <= self.cap)
        return Pieces(torch.where(alive, 1.0, 0.0).to(ratio.dtype), ratio, batch.advantage)

    def formula(self) -> str:
        rho = "rho_it" if self.cap is None else f"min(rho_it, {self.cap:g})"
        return f"l_it = -{rho} A_it,  rho = pi/pi_old"
