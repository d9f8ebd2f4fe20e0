"""Groups of groups: responses to several prompts bundled, and advantages shaped by quantiles of the bundles' scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError, unknown
from unipo.layout import Layout, segment_extreme, segment_sum
from unipo.parts.advantage import RewardAdvantage, reward_where_scored


@dataclass(frozen=True)
class Bundles:
    """Which responses answer one bundle together.

    block: [P] the block of each prompt, -1 for a prompt without scored responses.  bundle: [S] the bundle of each
    response, -1 for those in none.  owner: [N] the block of each bundle.
    """

    block: Tensor
    bundle: Tensor
    owner: Tensor

    @property
    def n(self) -> int:
        """How many bundles there are."""
        return len(self.owner)

    def sum(self, value: Tensor) -> Tensor:
        """[N] sum of a sequence column over the members of each bundle."""
        member = self.bundle >= 0
        return segment_sum(value[member], self.bundle[member], self.n)

    def to_sequences(self, value: Tensor) -> Tensor:
        """[S] the value of each response's bundle; 0 for those in none. value: [N]."""
        if not self.n:
            return torch.zeros(len(self.bundle), dtype=value.dtype, device=value.device)
        each = value[self.bundle.clamp(min=0)]
        return torch.where(self.bundle >= 0, each, torch.zeros_like(each))


def place_in_group(sample_id: Tensor, layout: Layout, scored: Tensor) -> Tensor:
    """[S] place of each scored response among the scored of its group by sample_id, from 0; -1 for the others."""
    order = torch.argsort(sample_id)
    order = order[torch.argsort((~scored)[order].to(torch.int64), stable=True)]
    order = order[torch.argsort(layout.seq_prompt[order], stable=True)]
    place = torch.empty_like(order)
    start = layout.group_starts[layout.seq_prompt[order]]
    place[order] = torch.arange(len(order), device=order.device) - start
    return torch.where(scored, place, -1)


def bundled(sample_id: Tensor, layout: Layout, scored: Tensor, size: int, even: bool = True) -> Bundles:
    """Blocks of about `size` prompts; the j-th responses of a block's prompts form its bundle j.

    Prompts are taken in the order in which they were sampled, and the responses of a prompt in theirs, both by
    sample_id: [S] int, so that neither the order of the batch nor a cut of it matters.  The responses to a prompt
    are independent draws, so that order is already a random permutation.
    even: blocks of nearly equal numbers of prompts, as close to `size` as that allows (7 prompts in fives are one
    block of 7, 8 are two of 4), and every scored response in exactly one bundle.  Otherwise consecutive blocks of
    `size` with a smaller last one, and as many bundles per block as its smallest group has responses; the others
    are in none.  scored: [S] bool.
    Source: RiskPO (arXiv 2510.00911), sec. 3; RTkenny/RiskPO: ray_trainer.py (even=False).
    """
    device = sample_id.device
    count = layout.group_count(scored)
    first = segment_extreme(sample_id, layout.seq_prompt, layout.n_prompts, largest=False)
    order = torch.argsort(first)
    order = order[count[order] > 0]
    blocks = max(1, math.floor(len(order) / size + 0.5)) if even else max(1, math.ceil(len(order) / size))
    block = torch.full((layout.n_prompts,), -1, dtype=torch.int64, device=device)
    for number, prompts in enumerate(order.tensor_split(blocks) if even else order.split(size)):
        block[prompts] = number
    place = place_in_group(sample_id, layout, scored)
    owner = layout.to_sequences(block)
    room = count
    if not even:
        smallest = torch.full((blocks,), int(count.max()) if len(count) else 0, dtype=count.dtype, device=device)
        held = block >= 0
        smallest = smallest.scatter_reduce(0, block[held], count[held], "amin")
        room = torch.where(held, smallest[block.clamp(min=0)], torch.zeros_like(count))
    member = scored & (owner >= 0) & (place < layout.to_sequences(room))
    width = int(place.max()) + 1 if len(place) else 1
    key = torch.where(member, owner * width + place, -1)
    names, index = key.unique(return_inverse=True)
    absent = int(bool((names < 0).any()))
    return Bundles(block, index - absent, names[absent:] // width)


def mixed_value_at_risk(score: Tensor, low: float, high: float, weight: float) -> Tensor:
    """A = -(1 + w) (Q_a - S)+ + (S - Q_a)+ - (S - Q_b)+ + Q_a - Q_b, with Q_a <= Q_b. score: [N]. Returns [N].

    Written as clip(S, Q_a, Q_b) - Q_b - (1 + w) (Q_a - S)+, which is exactly 0 from Q_b on.  Never positive; slope 1
    between the quantiles, 1 + w below Q_a.  With w = 0 and the extremes as quantiles it is S - max, the mean
    objective.
    Source: RiskPO (arXiv 2510.00911), mixed value-at-risk.
    """
    return score.clamp(low, high) - high - (1 + weight) * (low - score).clamp(min=0)


@dataclass(frozen=True)
class BundleRisk(RewardAdvantage):
    """RiskPO: penalise bundles of prompts by how far their score lies below the upper quantile of all bundles.

        S_j = B mean_{i in j} R_i;   A_i = mixed_value_at_risk(S_j) for every member i of bundle j
        Q <- Q + rate (a - mean_j 1[S_j < Q])   for both quantiles, after each batch

    size: B, prompts per bundle.  A complete bundle's score is the sum of its rewards; one with more or fewer
    members (prompts not divisible by B, unscored responses) is put on the same scale by its mean.  The quantiles
    start as the first batch's empirical ones and are remembered; the advantages of a batch use those from before
    it (the upper one raised to the lower where tracking has crossed them).  Bundles are those of `bundled`.
    Source: RiskPO (arXiv 2510.00911), the paper's form; the released code differs, see `ReleasedBundleRisk`.
    Unsure: how the paper treats incomplete bundles.
    """

    source = "RiskPO (arXiv 2510.00911)"
    size: int = 5
    low: float = 0.2
    high: float = 0.8
    weight: float = 0.5
    rate: float = 0.1

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.low <= self.high <= 1 or self.weight < 0 or not 0 <= self.rate <= 1:
            raise ConfigError(f"BundleRisk: size >= 1, 0 <= low <= high <= 1, weight >= 0, 0 <= rate <= 1; got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "scored", "sample_id")

    @property
    def state_key(self) -> str:
        return "bundle_quantiles"

    def _scores(self, batch: Batch) -> tuple[Bundles, Tensor]:
        reward, scored = reward_where_scored(batch)
        bundles = bundled(batch.sample_id, batch.layout, scored, self.size)
        members = bundles.sum(torch.ones_like(reward))
        return bundles, bundles.sum(reward) * (self.size / members)

    def _quantiles(self, batch: Batch, score: Tensor) -> tuple[float, float]:
        held = batch.states.get(self.state_key, {})
        if "low" in held:
            return float(held["low"]), float(held["high"])
        low, high = (float(torch.quantile(score, q)) for q in (self.low, self.high))
        return low, high

    def __call__(self, batch: Batch) -> Tensor:
        bundles, score = self._scores(batch)
        if not bundles.n:
            return torch.zeros_like(batch.reward)
        low, high = self._quantiles(batch, score)
        return bundles.to_sequences(mixed_value_at_risk(score, low, max(low, high), self.weight))

    def remember(self, batch: Batch) -> Mapping[str, Any]:
        bundles, score = self._scores(batch)
        if not bundles.n:
            return batch.states.get(self.state_key, {})
        now = self._quantiles(batch, score)
        below = [float((score < q).to(torch.float64).mean()) for q in now]
        low, high = (
            q + self.rate * (level - share) for q, level, share in zip(now, (self.low, self.high), below, strict=True)
        )
        return {"low": low, "high": high}

    def formula(self) -> str:
        return (
            f"S_j = sum of R over bundle j of {self.size} prompts;  "
            f"A_j = -{1 + self.weight:g} (Qa - S_j)+ + (S_j - Qa)+ - (S_j - Qb)+ + Qa - Qb;  "
            f"Qa <- Qa + {self.rate:g} ({self.low:g} - mean 1[S < Qa]), Qb likewise with {self.high:g}"
        )


CREDIT = ("std", "sum-mean", "uniform", "score")


def released_risk(
    score: Tensor, low: Tensor, high: Tensor, levels: tuple[float, float], mix: float, shift: bool, eps: float = 1e-6
) -> Tensor:
    """A = [mix (-(q_a - S)+ / a) + ((S - q_a)+ - (S - q_b)+ + [q_a - q_b]) / (b - a)] / (mix + 1).

    score, low, high: [N], low <= high; levels: (a, b); shift: whether the bracket stands.  eps is added to a and to b - a.
    Source: RTkenny/RiskPO: core_algos.py (compute_grpo_bundle_rvar_outcome_advantage_quantile_tracking).
    """
    a, b = levels
    range_value = score.clamp(low, high) - (high if shift else low)
    tail = -(low - score).clamp(min=0) / (a + eps)
    return (mix * tail + range_value / (b - a + eps)) / (mix + 1)


@dataclass(frozen=True)
class ReleasedBundleRisk(RewardAdvantage):
    """RiskPO as its code runs: each block of prompts is its own distribution.

        A_j = released_risk(S_j, quantiles of the block's own scores) / (std of those scores + eps)

    credit, inside a bundle: "std" divides by the standard deviation of the question's own rewards (by 1 where that
    is at most 1e-3); "sum-mean" shares A_j out in proportion to R_i - mean of the question (equal parts where the
    proportions add up to less than 1e-6; a share can be huge or negative); "uniform"; "score" gives 0.5 A_j to
    responses with a positive reward and 1.5 A_j to the others.
    The quantiles that the code tracks over training never reach an advantage: they are written to the batch after
    its advantages, and the next batch is a fresh object.  So there is no memory here.
    Blocks are consecutive prompts with a smaller last one on its own scale; its bundles are as many as its smallest
    group has responses, and responses beyond them get 0.
    shift, high: on and 0.9 for MATH and GSM8K, off and 0.8 for DAPO-Math.
    Source: RTkenny/RiskPO: core_algos.py, ray_trainer.py, scripts/run_qwen2.5_1.5b_MVaR_math.sh.
    """

    source = "RTkenny/RiskPO: core_algos.py"
    size: int = 5
    low: float = 0.2
    high: float = 0.9
    mix: float = 1.5
    shift: bool = True
    credit: str = "std"
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.credit not in CREDIT:
            raise unknown("credit inside a bundle", self.credit, CREDIT)
        if self.size < 1 or not 0 <= self.low < self.high <= 1 or self.mix < 0:
            raise ConfigError(f"ReleasedBundleRisk: size >= 1, 0 <= low < high <= 1, mix >= 0; got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "scored", "sample_id")

    def __call__(self, batch: Batch) -> Tensor:
        reward, scored = reward_where_scored(batch)
        bundles = bundled(batch.sample_id, batch.layout, scored, self.size, even=False)
        score = bundles.sum(reward)
        value = torch.zeros_like(score)
        for block in bundles.owner.unique().tolist():
            own = bundles.owner == block
            s = score[own]
            low, high = (torch.quantile(s, q) for q in (self.low, self.high))
            std = s.std() if len(s) > 1 else torch.ones_like(low)
            value[own] = released_risk(s, low, high, (self.low, self.high), self.mix, self.shift, self.eps) / (
                std + self.eps
            )
        return self._credited(bundles, value, reward, batch)

    def _credited(self, bundles: Bundles, value: Tensor, reward: Tensor, batch: Batch) -> Tensor:
        layout, scored = batch.layout, batch.scored
        each = bundles.to_sequences(value)
        if self.credit == "score":
            return each * torch.where(reward > 0, 0.5, 1.5)
        if self.credit == "std":
            std = layout.to_sequences(layout.group_std(reward, scored))
            return each / (torch.where(std > 1e-3, std, torch.ones_like(std)) + self.eps)
        if self.credit == "sum-mean":
            above = reward - layout.to_sequences(layout.group_mean(reward, scored))
            total = bundles.to_sequences(bundles.sum(above))
            members = bundles.to_sequences(bundles.sum(torch.ones_like(reward))).clamp(min=1)
            split = total.abs() > 1e-6
            return each * torch.where(split, above / torch.where(split, total, 1.0), 1 / members)
        return each

    def formula(self) -> str:
        shift = " + qa - qb" if self.shift else ""
        inside = {
            "std": "/ std_q(R)",
            "sum-mean": "* (R_i - mean_q)/sum_j(R - mean_q)",
            "uniform": "",
            "score": "* 0.5 or 1.5",
        }
        return (
            f"A_j = [{self.mix:g} (-(qa - S)+/{self.low:g}) + ((S - qa)+ - (S - qb)+{shift})/{self.high - self.low:g}]"
            f" / {self.mix + 1:g} / (std(S) + {self.eps:g}) {inside[self.credit]};  "
            f"S over {self.size} prompts, qa, qb: quantiles {self.low:g}, {self.high:g} of the block's own S"
        )
