"""Many are sampled, few are trained on: the responses and tokens in which the signal is.

These selections come after credit, because they choose by advantage.  What they drop is not forwarded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.parts.part import Selection

TIE = 1e-12  # relative difference of variances below which the smaller number of large values wins


def widest_subset(value: Tensor, size: int) -> Tensor:
    """The `size` members with the largest variance among themselves: [n] bool.

    value: [n].  The best set is always the k largest and the size - k smallest for some k, so all k are tried with
    prefix sums, O(n log n).  Of equal values the first ones are taken.
    Source: D3S (arXiv 2509.22115); the same fact in PODS (arXiv 2504.13818).
    """
    n = len(value)
    if size >= n:
        return torch.ones(n, dtype=torch.bool, device=value.device)
    if size < 1:
        return torch.zeros(n, dtype=torch.bool, device=value.device)
    # Centred and scaled first: the choice is the same and the rounding does not depend on where the values lie.
    x = value.to(torch.float64)
    x = x - x.mean()
    x = x / x.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    down, up = torch.argsort(-x, stable=True), torch.argsort(x, stable=True)
    k = torch.arange(size + 1, device=value.device)

    def sums(power: int) -> Tensor:
        """[size + 1] sum of x^power over the k largest and the size - k smallest."""
        zero = x.new_zeros(1)
        largest = torch.cat([zero, (x[down] ** power).cumsum(0)])
        smallest = torch.cat([zero, (x[up] ** power).cumsum(0)])
        return largest[k] + smallest[size - k]

    variance = sums(2) / size - (sums(1) / size) ** 2
    best = int((variance >= variance.max() - TIE).nonzero()[0])
    chosen = torch.zeros(n, dtype=torch.bool, device=value.device)
    chosen[down[:best]] = True
    # Equal values may stand at both ends; the smallest are taken from those that are left.
    rest = up[~chosen[up]]
    chosen[rest[: size - best]] = True
    return chosen


def largest_share(key: Tensor, among: Tensor, share: float) -> Tensor:
    """The tokens with the largest key: the top ceil(share * count), at least one, of those in `among`.

    key: [T], among: [T] bool, share in (0, 1].  Returns [T] bool; of equal keys the first ones are taken.
    """
    count = int(among.sum())
    if share >= 1 or count == 0:
        return among
    value = torch.where(among, key, torch.full_like(key, -math.inf))
    kept = torch.zeros_like(among)
    # Rounded before ceil: 0.3 * 10 is a little more than 3.
    kept[torch.argsort(-value, stable=True)[: max(1, math.ceil(round(share * count, 9)))]] = True
    return kept & among


def scheduled(first: float, last: float, step: int, total_steps: int) -> float:
    """From `first` at step 1 to `last` at the final step, linearly."""
    progress = (step - 1) / (total_steps - 1) if total_steps > 1 else 0.0
    return first + min(1.0, max(0.0, progress)) * (last - first)


@dataclass(frozen=True)
class WidestAdvantages(Selection):
    """Train on the responses whose advantages vary most: see `widest_subset`.

    first, last: share of the scored responses that is kept, at the first and the last step and linear between; of
    a group at least two (so S = two per prompt at least).  across: choose over the whole batch, so a prompt may give
    more than another or only good or bad responses; off, within each group (D3S-I).
    Advantages stay those of the full group.
    Source: D3S (arXiv 2509.22115); no public code.
    """

    source = "D3S (arXiv 2509.22115)"
    level: ClassVar[str] = "sequence"
    late: ClassVar[bool] = True
    first: float = 0.25
    last: float = 0.5
    across: bool = True

    def __post_init__(self) -> None:
        if not (0 < self.first <= 1 and 0 < self.last <= 1):
            raise ConfigError(f"WidestAdvantages: first and last are shares in (0, 1], got {self.first}, {self.last}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("sequence_advantage", "scored")

    def __call__(self, batch: Batch) -> Tensor:
        layout, scored, value = batch.layout, batch.scored, batch.sequence_advantage
        share = scheduled(self.first, self.last, batch.step, batch.total_steps)
        sizes = layout.group_count(scored).tolist()
        budgets = [min(n, max(2, math.floor(share * n + 0.5))) for n in sizes]
        chosen = torch.zeros(layout.n_sequences, dtype=torch.bool, device=value.device)
        if self.across:
            chosen[scored] = widest_subset(value[scored], sum(budgets))
            return chosen
        for p, budget in enumerate(budgets):
            members = (scored & (layout.seq_prompt == p)).nonzero().flatten()
            chosen[members] = widest_subset(value[members], budget)
        return chosen

    def formula(self) -> str:
        where = "over the batch" if self.across else "in each group"
        return f"keep the responses with the widest Var(A_i), {self.first:g} -> {self.last:g} of them over the run, {where}"


@dataclass(frozen=True)
class StrongestTokens(Selection):
    """Train on the tokens with the largest |A_t| H_t, H the entropy of the distribution the token was sampled from.

    first, last: share of the counted tokens of the batch that is kept, at the first and the last step and linear
    between; at least one token.  H is the rollout policy's, so it costs no pass.
    Source: D3S (arXiv 2509.22115); no public code.
    """

    source = "D3S (arXiv 2509.22115)"
    level: ClassVar[str] = "token"
    late: ClassVar[bool] = True
    first: float = 0.2
    last: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.first <= 1 and 0 <= self.last <= 1):
            raise ConfigError(f"StrongestTokens: first and last are shares in [0, 1], got {self.first}, {self.last}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("advantage", "behaviour_entropy", "mask")

    def __call__(self, batch: Batch) -> Tensor:
        share = scheduled(self.first, self.last, batch.step, batch.total_steps)
        entropy = torch.where(batch.mask, batch.behaviour_entropy, torch.zeros_like(batch.behaviour_entropy))
        return largest_share(batch.advantage.abs() * entropy.to(batch.advantage.dtype), batch.mask, share)

    def formula(self) -> str:
        return f"keep the tokens with the largest |A_it| H(pi_old(.|x, y_<t)), {self.first:g} -> {self.last:g} of them over the run"
