"""Whole groups weighed by what their rollouts say of the prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError, unknown
from unipo.layout import Layout
from unipo.parts.part import Credit

EDGES = ("llm", "vlm")


@dataclass(frozen=True)
class GroupWeight(Credit):
    """Base: every advantage of a group times one number, w_g A_it, with w_g from rollout statistics and no gradient.

    Applied after the baseline and its scale, so it is not normalised away: the group's direction stays, only
    the length of its step changes.
    """

    @property
    def unit(self) -> str:
        return "response"

    def weights(self, batch: Batch) -> Tensor:
        """[P] the weight of each prompt."""
        raise NotImplementedError

    def __call__(self, batch: Batch) -> Tensor:
        advantage: Tensor = batch.advantage
        weight = self.weights(batch).detach().to(advantage.dtype)
        return advantage * weight[batch.layout.token_prompt]


def longer_when_right(
    length: Tensor, right: Tensor, usable_wrong: Tensor, layout: Layout, edges: str = "llm"
) -> Tensor:
    """Whether the longest right response is longer than the mean usable wrong one, strictly. [P] bool.

        max_{i right} T_i  >  mean_{i wrong, usable} T_i

    length: [S] tokens; right, usable_wrong: [S] bool.  Where a group lacks one kind the two releases differ:

        edges    no right   no usable wrong   neither
        "llm"    False      True              False      (max = -inf, mean = -inf)
        "vlm"    True       False             True       (groups without a right response are let through)

    Source: ADORA (arXiv 2602.10019); ShadeCloak/ADORA: core_algos.py (llm), experience_maker_vl.py (vlm).
    """
    if edges not in EDGES:
        raise unknown("rule for groups that lack right or wrong responses", edges, EDGES)
    length = length.to(torch.float64)
    longest = layout.group_max(length, right)
    mean = layout.group_mean(length, usable_wrong)
    absent = torch.full_like(mean, math.inf if edges == "vlm" else -math.inf)
    longer = longest > torch.where(layout.group_count(usable_wrong) > 0, mean, absent)
    return longer | (layout.group_count(right) == 0) if edges == "vlm" else longer


@dataclass(frozen=True)
class LengthAdvantage(GroupWeight):
    """ADORA: a group counts fully where thinking longer paid, and less (or the others more) elsewhere.

        w_g = strong if longer_when_right(g) and (difficulty is None or #right/G <= difficulty) else weak

    attenuate (released code, both models): strong 1, weak 0.1, no difficulty.  amplify (the paper's rule for
    language models): strong 2, weak 1, difficulty 0.5.  A response is right if its `score` is above `threshold`
    (the task's own score; the releases compare the total reward, with 1.01 on a scale up to 3, or 0.5).
    cap: wrong responses of this many tokens or more are left out of the mean; 0 leaves out those that the token
    budget cut off.  The releases use 4054 and 4094, and one script has a budget of 2048, so that its cap never
    binds.  edges: see `longer_when_right`.  Unscored responses count nowhere.
    Source: ADORA (arXiv 2602.10019); ShadeCloak/ADORA: core_algos.py, experience_maker_vl.py.
    Unsure: how the paper combines its two criteria (both, here); truncated right responses (counted, here).
    """

    source = "ADORA (arXiv 2602.10019); ShadeCloak/ADORA: core_algos.py"
    strong: float = 1.0
    weak: float = 0.1
    difficulty: float | None = None
    threshold: float = 0.5
    cap: int = 0
    edges: str = "llm"

    def __post_init__(self) -> None:
        if self.edges not in EDGES:
            raise unknown("LengthAdvantage.edges", self.edges, EDGES)
        if self.strong < 0 or self.weak < 0 or self.cap < 0:
            raise ConfigError(f"LengthAdvantage: strong, weak and cap must not be negative, got {self}")
        if self.difficulty is not None and not 0 <= self.difficulty <= 1:
            raise ConfigError(f"LengthAdvantage.difficulty is a share of right responses in [0, 1], got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("advantage", "score", "scored", *(() if self.cap else ("truncated",)))

    def weights(self, batch: Batch) -> Tensor:
        layout, scored = batch.layout, batch.scored
        right = scored & (batch.score > self.threshold)
        cut = layout.seq_lengths >= self.cap if self.cap else batch.truncated
        chosen = longer_when_right(layout.seq_lengths, right, scored & ~right & ~cut, layout, self.edges)
        if self.difficulty is not None:
            chosen = chosen & (layout.group_mean(right.to(torch.float64), scored) <= self.difficulty)
        strong = torch.full((layout.n_prompts,), self.strong, dtype=torch.float64, device=chosen.device)
        return torch.where(chosen, strong, torch.full_like(strong, self.weak))

    def formula(self) -> str:
        hard = "" if self.difficulty is None else f" and #right/G <= {self.difficulty:g}"
        left_out = f"T_i < {self.cap}" if self.cap else "not cut off"
        return (
            f"A_it *= {self.strong:g} if max_right T > mean_(wrong, {left_out}) T{hard} else {self.weak:g}"
            f"  (empty sides as {self.edges})"
        )
