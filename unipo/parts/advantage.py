"""Advantages: how much better a response was than expected, from rewards alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.part import Advantage
from unipo.parts.regulariser import FORMULAS, check_estimator, kl_estimate


def reward_where_scored(batch: Batch) -> tuple[Tensor, Tensor]:
    """([S] rewards with 0 where there is none, [S] bool scored)."""
    scored: Tensor = batch.scored
    return torch.where(scored, batch.reward, torch.zeros_like(batch.reward)), scored


def group_centred(reward: Tensor, layout: Layout, scored: Tensor | None = None) -> Tensor:
    """Reward minus the mean of its group: A_i = R_i - mean_g.

    reward: [S], any scale; scored: [S] bool, members that count.  Returns [S] in units of reward; exactly 0
    for the unscored and for groups whose rewards are all equal.
    Source: Dr. GRPO (arXiv 2503.20783), eq. (2).
    """
    centred = reward - layout.to_sequences(layout.group_mean(reward, scored))
    still = layout.to_sequences(layout.group_constant(reward, scored))
    keep = ~still if scored is None else scored & ~still
    return torch.where(keep, centred, torch.zeros_like(centred))


def group_normalised(
    reward: Tensor, layout: Layout, eps: float, scored: Tensor | None = None, unbiased: bool = True
) -> Tensor:
    """Standardise each reward within its group: A_i = (R_i - mean_g) / (std_g + eps).

    reward: [S], any scale; scored: [S] bool.  Returns [S], unitless; 0 where a group's rewards are equal.
    unbiased: divide the squares by G - 1.
    Source: DeepSeekMath (arXiv 2402.03300), eq. (3) with outcome supervision; whether its std is biased is not
    said, and verl (core_algos.py), TRL (grpo_trainer.py) and OpenRLHF use the unbiased one.
    """
    centred = group_centred(reward, layout, scored)
    return centred / (layout.to_sequences(layout.group_std(reward, scored, unbiased)) + eps)


def leave_one_out(reward: Tensor, layout: Layout, scored: Tensor | None = None) -> Tensor:
    """Reward minus the mean of the other members: A_i = R_i - sum_{j != i} R_j / (G - 1) = G/(G-1) (R_i - mean_g).

    reward: [S], any scale; scored: [S] bool.  Returns [S] in units of reward; 0 where fewer than two count.
    Source: Back to Basics (arXiv 2402.14740), eq. (8).
    """
    count = layout.to_sequences(layout.group_count(scored)).to(reward.dtype)
    return group_centred(reward, layout, scored) * count / (count - 1).clamp(min=1)


def whitened(x_t: Tensor, mask: Tensor, eps: float = 1e-8, unbiased: bool = True) -> Tensor:
    """Standardise over all counted tokens of the batch: (x - mean) / sqrt(var + eps).

    x_t: [T], mask: [T] bool.  Returns [T], 0 off the mask and where all counted values are equal.  The moments
    are token-weighted: a long response moves the mean more than a short one.
    Source: REINFORCE++ (arXiv 2501.03262); unbiased variance + 1e-8 as in verl (core_algos.py), OpenRLHF uses the
    biased one floored at 1e-8 (`unbiased=False` differs from it only in that floor).
    """
    values = x_t[mask]
    if len(values) == 0 or bool(values.max() == values.min()):
        return torch.zeros_like(x_t)
    variance = values.var(unbiased=unbiased and len(values) > 1)
    return torch.where(mask, (x_t - values.mean()) * torch.rsqrt(variance + eps), torch.zeros_like(x_t))


@dataclass(frozen=True)
class RewardAdvantage(Advantage):
    """Base of advantages made from rewards."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "scored")


@dataclass(frozen=True)
class Raw(RewardAdvantage):
    """The reward itself: A_i = R_i, no baseline. Unscored responses get 0."""

    source = "Williams 1992, REINFORCE without baseline"

    def __call__(self, batch: Batch) -> Tensor:
        return reward_where_scored(batch)[0]

    def formula(self) -> str:
        return "A_i = R_i"


@dataclass(frozen=True)
class RunningBaseline(RewardAdvantage):
    """Reward minus a running mean of past rewards: A_i = R_i - b, b <- decay b + (1 - decay) mean(R).

    The baseline comes from earlier batches only, so it is independent of the responses it judges.  Before the
    first update b is 0.  Source: Williams 1992, reinforcement comparison.
    """

    source = "Williams 1992, reinforcement comparison"
    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"RunningBaseline.decay must lie in [0, 1), got {self.decay}")

    @property
    def state_key(self) -> str:
        return "running_baseline"

    def __call__(self, batch: Batch) -> Tensor:
        reward, scored = reward_where_scored(batch)
        baseline = float(batch.states.get(self.state_key, {}).get("baseline", 0.0))
        return torch.where(scored, reward - baseline, torch.zeros_like(reward))

    def remember(self, batch: Batch) -> Mapping[str, Any]:
        reward, scored = reward_where_scored(batch)
        before = batch.states.get(self.state_key, {})
        if not bool(scored.any()):
            return before
        mean = float(reward[scored].mean())
        if "baseline" not in before:
            return {"baseline": mean}
        return {"baseline": self.decay * float(before["baseline"]) + (1 - self.decay) * mean}

    def formula(self) -> str:
        return f"A_i = R_i - b,  b <- {self.decay} b + {1 - self.decay:.3g} mean(R)"


@dataclass(frozen=True)
class GroupCentred(RewardAdvantage):
    """See `group_centred`."""

    source = "Dr. GRPO (arXiv 2503.20783), eq. (2)"
    smallest_group: ClassVar[int] = 2

    def __call__(self, batch: Batch) -> Tensor:
        reward, scored = reward_where_scored(batch)
        return group_centred(reward, batch.layout, scored)

    def formula(self) -> str:
        return "A_i = R_i - mean_g(R)"


@dataclass(frozen=True)
class GroupNormalised(RewardAdvantage):
    """See `group_normalised`. eps: TRL 1e-4, verl 1e-6, OpenRLHF 1e-9."""

    source = "DeepSeekMath (arXiv 2402.03300), eq. (3); huggingface/trl: grpo_trainer.py"
    smallest_group: ClassVar[int] = 2
    eps: float = 1e-4
    unbiased: bool = True

    def __call__(self, batch: Batch) -> Tensor:
        reward, scored = reward_where_scored(batch)
        return group_normalised(reward, batch.layout, self.eps, scored, self.unbiased)

    def formula(self) -> str:
        kind = "n-1" if self.unbiased else "n"
        return f"A_i = (R_i - mean_g(R)) / (std_g(R) + {self.eps:g}),  std over {kind}"


@dataclass(frozen=True)
class LeaveOneOut(RewardAdvantage):
    """See `leave_one_out`."""

    source = "Back to Basics (arXiv 2402.14740), eq. (8)"
    smallest_group: ClassVar[int] = 2

    def __call__(self, batch: Batch) -> Tensor:
        reward, scored = reward_where_scored(batch)
        return leave_one_out(reward, batch.layout, scored)

    def formula(self) -> str:
        return "A_i = R_i - (1/(G-1)) sum_{j != i} R_j"


def rewards_of_tokens(reward: Tensor, token_reward: Tensor, layout: Layout, mask: Tensor) -> Tensor:
    """Dense rewards plus the response's own on its last counted token. reward: [S]; token_reward: [T]; mask: [T] bool.

    Returns [T], 0 off the mask: a response without a counted token has no reward.
    """
    last = mask & (layout.seq_suffix_sum(mask.to(torch.int64)) == 1)
    r_t = torch.where(mask, token_reward, torch.zeros_like(token_reward))
    return r_t + torch.where(last, layout.to_tokens(reward), torch.zeros_like(r_t))


def reward_to_go(reward: Tensor, token_reward: Tensor, layout: Layout, mask: Tensor, gamma: float) -> Tensor:
    """Return G_t = sum_{u >= t} gamma^(u-t) r_u, with the response's reward on its last counted token.

    reward: [S]; token_reward: [T] dense rewards (0 off the mask); mask: [T] bool.  Returns [T], 0 off the mask.
    Tokens the policy did not write are passed over and do not discount.
    Source: REINFORCE++ (arXiv 2501.03262), eq. (5); verl core_algos.py: compute_reinforce_plus_plus_outcome_advantage.
    """
    r_t = rewards_of_tokens(reward, token_reward, layout, mask)
    if gamma != 1.0:
        decay = torch.where(mask, torch.full_like(r_t, gamma, dtype=torch.float64), 1.0)
        go = layout.seq_suffix_sum(r_t, decay)
    else:
        go = layout.seq_suffix_sum(r_t)
    return torch.where(mask, go, torch.zeros_like(go))


@dataclass(frozen=True)
class WhitenedReturn(RewardAdvantage):
    """REINFORCE++: token returns, standardised over all counted tokens of the batch.

        r_t = R [t last] - beta k(log pi_old - log pi_ref);  G_t = sum_{u>=t} gamma^(u-t) r_u;  A_t = whiten(G_t)
    A batch whose returns are all equal gets exactly 0.
    Source: REINFORCE++ (arXiv 2501.03262); verl core_algos.py, OpenRLHF experience_maker.py.
    Unsure: the paper's numbers differ between its versions.
    """

    source = "REINFORCE++ (arXiv 2501.03262); volcengine/verl: core_algos.py"
    level: ClassVar[str] = "token"
    beta: float = 0.0
    estimator: str = "k1"
    gamma: float = 1.0
    eps: float = 1e-8
    unbiased: bool = True

    def __post_init__(self) -> None:
        check_estimator(self.estimator)
        if not 0 < self.gamma <= 1 or self.beta < 0:
            raise ConfigError(f"{type(self).__name__}: gamma in (0, 1] and beta >= 0, got {self.gamma}, {self.beta}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "scored", "mask", *(("old_logp", "reference_logp") if self.beta else ()))

    def __call__(self, batch: Batch) -> Tensor:
        reward = self.rewards(batch)
        dense = torch.zeros(batch.layout.n_tokens, dtype=reward.dtype, device=reward.device)
        if self.beta:
            kl = kl_estimate(batch.old_logp, batch.reference_logp, batch.mask, self.estimator)
            dense = -self.beta * kl.to(reward.dtype)
        returns = reward_to_go(reward, dense, batch.layout, batch.mask, self.gamma)
        return whitened(returns, batch.mask, self.eps, self.unbiased)

    def rewards(self, batch: Batch) -> Tensor:
        """[S] what falls on each response's last token."""
        return reward_where_scored(batch)[0]

    def formula(self, reward: str = "R_i") -> str:
        kl = f" - {self.beta:g} ({FORMULAS[self.estimator]})" if self.beta else ""
        return f"r_t = {reward} [t last]{kl};  G_t = sum_(u>=t) {self.gamma:g}^(u-t) r_u;  A_t = (G_t - mean)/sqrt(var + {self.eps:g}) over all tokens"


@dataclass(frozen=True)
class CentredReturn(WhitenedReturn):
    """REINFORCE++-baseline: `WhitenedReturn` of the reward minus its group's mean; the KL then usually moves to the loss.

    Returns [T].  A group of equal rewards has a return of 0, but is standardised with the others, so it moves against
    them (`batchwide`).
    Source: REINFORCE++ (arXiv 2501.03262), the variant with a baseline; OpenRLHF: reinforce_baseline.
    Unsure: group size and strength of the KL differ between the paper's versions.
    """

    smallest_group: ClassVar[int] = 2
    batchwide: ClassVar[bool] = True

    def rewards(self, batch: Batch) -> Tensor:
        reward, scored = reward_where_scored(batch)
        return group_centred(reward, batch.layout, scored)

    def formula(self, reward: str = "(R_i - mean_g(R))") -> str:
        return super().formula(reward)
