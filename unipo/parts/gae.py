"""Generalised advantage estimation: per-token advantages and returns from rewards and a value model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError, unknown
from unipo.layout import Layout
from unipo.parts.advantage import rewards_of_tokens, whitened
from unipo.parts.part import Advantage, Signal
from unipo.signals import Values

# Which responses go on after their last token: none, those the source will go on writing, those cut off for good.
GOES_ON = {"none": "", "unfinished": "unfinished", "truncated": "truncated"}


def check_discounts(part: object, gamma: float, lam: float) -> None:
    """Raise ConfigError unless both factors lie in [0, 1]."""
    if not 0 <= gamma <= 1 or not 0 <= lam <= 1:
        raise ConfigError(f"{type(part).__name__}: gamma and lam must lie in [0, 1], got {gamma} and {lam}")


def next_values(value: Tensor, layout: Layout, mask: Tensor, goes_on: Tensor | None = None) -> Tensor:
    """V(s_{t+1}) for each counted token: the value at the next counted token of its response, 0 after the last.

    value: [T]; mask: [T] bool; goes_on: [S] bool, responses cut short, whose last counted token is followed by its own
    value, V(s_l) = V(s_{l-1}), so that no state beyond the cut has to be evaluated.  Returns [T], 0 off the mask.
    Source: T-PPO (arXiv 2506.15050), assumption of EGAE; tokens off the mask are passed over as in verl
    (core_algos.py: compute_gae_advantage_return).
    """
    at = mask.nonzero().flatten()
    own, seq = value[at], layout.token_seq[at]
    last = torch.ones_like(seq, dtype=torch.bool)
    last[:-1] = seq[1:] != seq[:-1]
    after_last = torch.zeros_like(own) if goes_on is None else torch.where(goes_on[seq], own, torch.zeros_like(own))
    following = torch.where(last, after_last, own.roll(-1))
    return torch.zeros_like(value).index_copy(0, at, following)


def gae(
    reward: Tensor,
    token_reward: Tensor,
    value: Tensor,
    layout: Layout,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    goes_on: Tensor | None = None,
) -> Tensor:
    """Generalised advantage estimate of every counted token.

        delta_t = r_t + gamma V(s_{t+1}) - V(s_t);   A_t = sum_{k >= 0} (gamma lam)^k delta_{t+k}
    V(s_t) is read before token t is written.  The response's reward falls on its last counted token; tokens off the
    mask (a tool's) are passed over: they neither discount nor have a delta of their own.
    reward: [S]; token_reward: [T]; value: [T]; mask: [T] bool; goes_on: [S] bool, responses cut short: no reward yet,
    and a value after the end (`next_values`).  Returns [T] in units of reward, 0 off the mask; float64 if rewards are.
    Limits: lam = gamma = 1: R - V(s_t); lam = 0: delta_t.
    Source: Schulman et al. (arXiv 1506.02438), eq. (16); with goes_on, EGAE of T-PPO (arXiv 2506.15050).
    """
    if goes_on is not None:
        reward = torch.where(goes_on, torch.zeros_like(reward), reward)
    # Selected before anything is subtracted: a value at a tool's token may be anything.
    counted = torch.where(mask, value.detach(), torch.zeros_like(value)).to(reward.dtype)
    r_t = rewards_of_tokens(reward, token_reward.to(reward.dtype), layout, mask)
    delta = r_t + gamma * next_values(counted, layout, mask, goes_on) - counted
    if gamma * lam == 1.0:
        total = layout.seq_suffix_sum(delta)
    else:
        decay = torch.where(mask, torch.full_like(delta, gamma * lam, dtype=torch.float64), 1.0)
        total = layout.seq_suffix_sum(delta, decay)
    return torch.where(mask, total, torch.zeros_like(total))


def scored_reward(batch: Batch) -> Tensor:
    """[S] rewards with 0 where there is none."""
    return torch.where(batch.scored, batch.reward, torch.zeros_like(batch.reward))


def going_on(batch: Batch, which: str) -> Tensor | None:
    """[S] bool, responses after whose end a value follows; None for "none". which: see `GOES_ON`."""
    column = GOES_ON[which]
    return getattr(batch, column) if column else None


@dataclass(frozen=True)
class GAE(Advantage):
    """See `gae`. With `whiten`, standardised over all counted tokens of the batch afterwards.

    goes_on: "none": every response ends with its reward, also one cut off by the token budget (usual);
    "unfinished": those the source goes on writing are bootstrapped (T-PPO's EGAE); "truncated": those cut off by the
    token budget are, and their reward is not used.
    """

    source = "Schulman et al. (arXiv 1506.02438), eq. (16); volcengine/verl: core_algos.py; huggingface/trl"
    level: ClassVar[str] = "token"
    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True
    eps: float = 1e-8
    goes_on: str = "none"

    def __post_init__(self) -> None:
        check_discounts(self, self.gamma, self.lam)
        if self.goes_on not in GOES_ON:
            raise unknown("choice of GAE.goes_on", self.goes_on, GOES_ON)

    @property
    def needs(self) -> tuple[str, ...]:
        column = GOES_ON[self.goes_on]
        return ("reward", "scored", "token_reward", "value", "mask", *((column,) if column else ()))

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (Values(),)

    def estimate(self, batch: Batch) -> Tensor:
        """[T] advantages before whitening."""
        goes_on = going_on(batch, self.goes_on)
        return gae(
            scored_reward(batch),
            batch.token_reward,
            batch.value,
            batch.layout,
            batch.mask,
            self.gamma,
            self.lam,
            goes_on,
        )

    def __call__(self, batch: Batch) -> Tensor:
        advantage = self.estimate(batch)
        return whitened(advantage, batch.mask, self.eps) if self.whiten else advantage

    def formula(self) -> str:
        end = f";  V(s_end) = V(s_last) where {self.goes_on}" if self.goes_on != "none" else ""
        white = f";  A <- (A - mean)/sqrt(var + {self.eps:g}) over all tokens" if self.whiten else ""
        return (
            f"d_t = r_t + {self.gamma:g} V(s_t+1) - V(s_t),  r_last += R_i;  "
            f"A_t = sum_k {self.gamma * self.lam:g}^k d_t+k{end}{white}"
        )
