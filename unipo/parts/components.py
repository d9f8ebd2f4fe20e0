"""Rewards with several components: how they become one number, or one advantage.

The components are those the reward reports (`reward_parts`), before any weight of the reward's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.layout import Layout
from unipo.parts.advantage import group_normalised
from unipo.parts.part import Advantage, Part, Shaping


def component_names(batch: Batch, names: Sequence[str] = ()) -> tuple[str, ...]:
    """The components to use: `names`, or all that stand by themselves ("maths", not "maths/correct")."""
    if names:
        return tuple(names)
    found = dict.fromkeys(n for parts in batch.reward_parts for n in parts if "/" not in n)
    if not found:
        raise DataError("the reward reports no components; give one with parts, e.g. maths + 0.1*format:r1")
    return tuple(found)


def components(batch: Batch, names: Sequence[str]) -> Tensor:
    """[S, K] float64 values of these components, 0 for the unscored.

    Raises DataError where a scored response lacks one.
    """
    rows = []
    for i, (parts, scored) in enumerate(zip(batch.reward_parts, batch.scored.tolist(), strict=True)):
        lacking = [n for n in names if parts.get(n) is None] if scored else []
        if lacking:
            raise DataError(
                f"response {i} has no value of the reward component {lacking[0]!r} "
                f"(it has: {', '.join(parts) or 'none'})"
            )
        rows.append([float(parts[n]) if scored else 0.0 for n in names])
    return torch.tensor(rows, dtype=torch.float64, device=batch.layout.device).reshape(len(rows), len(names))


def normalised_components(
    values: Tensor, weights: Tensor, layout: Layout, eps: float, scored: Tensor | None = None
) -> Tensor:
    """Standardise every component within its group, then add up: A_i = sum_k w_k (r_ik - mean_k) / (std_k + eps).

    values: [S, K]; weights: [K]; scored: [S] bool.  Returns [S].  A component that is constant in the group adds
    exactly 0; the scale of a component does not matter.
    """
    columns = [group_normalised(values[:, k], layout, eps, scored) for k in range(values.shape[1])]
    return (torch.stack(columns, 1) * weights).sum(1)


@dataclass(frozen=True)
class _Components(Part):
    """Settings of every part that reads components.

    names: components, in the order of the weights; () takes all that stand by themselves.  weights: one each;
    () is 1/K.  clip: bring every component into [0, 1] first, as regression heads can overshoot.
    """

    names: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    clip: bool = True

    def __post_init__(self) -> None:
        if self.names and self.weights and len(self.names) != len(self.weights):
            raise ConfigError(f"{type(self).__name__}: {len(self.weights)} weights for {len(self.names)} components")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "scored", "reward_parts")

    def _weighted(self, batch: Batch) -> tuple[str, ...]:
        """The components that the weights are of."""
        return component_names(batch, self.names)

    def _read(self, batch: Batch) -> tuple[str, ...]:
        """Every component that the reward depends on."""
        return self._weighted(batch)

    def _clipped(self, batch: Batch, names: Sequence[str]) -> Tensor:
        values = components(batch, names)
        return values.clamp(0, 1) if self.clip else values

    def _values(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """([S, K] components, [K] weights)."""
        names = self._weighted(batch)
        weights = self.weights or (1 / len(names),) * len(names)
        if len(weights) != len(names):
            raise ConfigError(
                f"{type(self).__name__}: {len(weights)} weights for the components {', '.join(names)}; name them"
            )
        values = self._clipped(batch, names)
        return values, torch.tensor(weights, dtype=torch.float64, device=values.device)

    def measure(self, batch: Batch) -> Mapping[str, float]:
        kept = self._clipped(batch, self._read(batch))[batch.scored]
        if kept.shape[1] < 2 or len(kept) < 2:
            return {}
        pairs = torch.corrcoef(kept.T)[torch.ones(kept.shape[1], kept.shape[1]).triu(1).bool()]
        pairs = pairs[pairs.isfinite()]  # a constant component has none
        return {"components/correlation": float(pairs.min())} if len(pairs) else {}

    def _shown(self, every: str = "every component") -> str:
        names = ", ".join(self.names) or every
        weights = ", ".join(f"{w:g}" for w in self.weights) or "1/K"
        return f"k over {names}, w = {weights}" + (", r in [0, 1]" if self.clip else "")


@dataclass(frozen=True)
class ComponentSum(_Components, Shaping):
    """R_i = sum_k w_k r_ik: the weighted sum, then normalised as one reward. A component with a wide spread rules.

    Source: MO-GRPO (arXiv 2503.21819), scalar aggregation of a four-headed reward model; no public code.
    """

    source = "MO-GRPO (arXiv 2503.21819)"

    def __call__(self, batch: Batch) -> Tensor:
        values, weights = self._values(batch)
        return (values * weights).sum(1).to(batch.reward.dtype)

    def formula(self) -> str:
        return f"R_i = sum_k w_k r_ik,  {self._shown()}"


@dataclass(frozen=True)
class ComponentMin(_Components, Shaping):
    """R_i = min_k r_ik: the worst component is the reward. Weights are not used.

    Source: egalitarian aggregation; an alternative to `ComponentSum`, not the paper's.
    """

    source = "egalitarian aggregation"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights:
            raise ConfigError("ComponentMin takes no weights")

    def __call__(self, batch: Batch) -> Tensor:
        return self._values(batch)[0].min(1).values.to(batch.reward.dtype)

    def formula(self) -> str:
        return f"R_i = min_k r_ik,  {self._shown()}"


@dataclass(frozen=True)
class ComponentGate(_Components, Shaping):
    """R_i = r_i,gate sum_{k != gate} w_k r_ik, and `otherwise` where r_i,gate < least: a hard constraint.

    weights: of the components without the gate, default 1/K of those.
    Source: constrained aggregation; an alternative to `ComponentSum`, not the paper's.
    """

    source = "constrained aggregation"
    gate: str = ""
    least: float = 0.0
    otherwise: float = -1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gate or self.gate in self.names:
            raise ConfigError(f"ComponentGate needs gate=, a component that is not among names; got {self.gate!r}")

    def _weighted(self, batch: Batch) -> tuple[str, ...]:
        names = tuple(n for n in super()._weighted(batch) if n != self.gate)
        if not names:
            raise DataError(f"the reward has no component beside the gate {self.gate!r}")
        return names

    def _read(self, batch: Batch) -> tuple[str, ...]:
        # A gate that shuts where another component is high is a conflict like any other.
        return (*self._weighted(batch), self.gate)

    def __call__(self, batch: Batch) -> Tensor:
        open_ = self._clipped(batch, (self.gate,))[:, 0]
        values, weights = self._values(batch)
        reward = open_ * (values * weights).sum(1)
        shut = torch.full_like(reward, self.otherwise)
        return torch.where(open_ < self.least, shut, reward).to(batch.reward.dtype)

    def formula(self) -> str:
        return f"R_i = r_i,{self.gate} sum_k w_k r_ik, or {self.otherwise:g} where r_i,{self.gate} < {self.least:g},  {self._shown('every other component')}"


@dataclass(frozen=True)
class ComponentsNormalised(_Components, Advantage):
    """See `normalised_components`: every component counts by its weight alone, whatever its scale.

    Source: normalise-then-sum, beside the sum-then-normalise of MO-GRPO (arXiv 2503.21819).
    """

    source = "normalise-then-sum, the alternative to MO-GRPO (arXiv 2503.21819)"
    smallest_group: ClassVar[int] = 2
    eps: float = 1e-4

    def __call__(self, batch: Batch) -> Tensor:
        values, weights = self._values(batch)
        return normalised_components(values, weights, batch.layout, self.eps, batch.scored).to(batch.reward.dtype)

    def formula(self) -> str:
        return f"A_i = sum_k w_k (r_ik - mean_g(r_k)) / (std_g(r_k) + {self.eps:g}),  {self._shown()}"
