"""Learning a value model beside the policy: its target, its loss, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError, unknown
from unipo.parts.average import Average, counted
from unipo.parts.gae import GOES_ON, check_discounts, gae, going_on, scored_reward
from unipo.parts.part import Objective, Signal
from unipo.signals import Values


def clipped_value_loss(value: Tensor, old: Tensor, target: Tensor, clip: float | None) -> Tensor:
    """Half the squared error, pessimistic about moving further than `clip` from the old value.

        l = 1/2 max((v - G)^2, (clip(v, v_old - c, v_old + c) - G)^2)
    value, old, target: same shape, in units of return; clip c: None gives 1/2 (v - G)^2.  Gradient is exactly 0 where
    the clipped branch is the larger and |v - v_old| > c.
    Source: huggingface/trl: ppo_trainer.py; volcengine/verl: core_algos.py: compute_value_loss (0.5 of the mean).
    """
    error = (value - target).square()
    if clip is not None:
        near = torch.minimum(torch.maximum(value, old - clip), old + clip)
        error = torch.maximum(error, (near - target).square())
    return error / 2


@dataclass(frozen=True)
class ValueTokens(Average):
    """Mean over the tokens the value model learns from: `counted`, or with `finished` all tokens that the policy wrote
    of scored responses that came to their end."""

    source = "volcengine/verl: core_algos.py: compute_value_loss (token mean)"
    finished: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        return ("trainable", "scored", "unfinished") if self.finished else ("mask",)

    def where(self, batch: Batch) -> Tensor:
        """[T] bool: tokens that take part."""
        if not self.finished:
            mask: Tensor = batch.mask
            return mask
        chosen: Tensor = batch.trainable & batch.layout.to_tokens(batch.scored & ~batch.unfinished)
        return chosen

    def token_weights(self, batch: Batch) -> Tensor:
        m_t = counted(self.where(batch))
        return m_t / m_t.sum().clamp(min=1)

    def formula(self) -> str:
        return "mean over all tokens of finished responses" if self.finished else "mean over all counted tokens"


@dataclass(frozen=True)
class ValueLearning(Objective):
    """A value model learns the return of every token by squared error; see `clipped_value_loss`.

        G_t = A_t + V(s_t), with A_t = `gae` at gamma and lam of its own, before whitening and without gradient
    lam = 1 (gamma = 1) makes G_t the response's reward, a Monte-Carlo target.  gamma and lam are separate from the
    advantage's: set both alike for plain PPO.
    goes_on: responses after whose last token a value follows instead of their reward; the advantage's `GAE.goes_on`.
    finished: learn from all tokens of responses that ended in this batch, and from no other (T-PPO).
    shared: the value is a head on the policy's own backbone, and `coefficient` times this loss is added to the
    policy's and stepped by its optimiser (learning_rate to pretrain are then not used).  Otherwise the value model has
    a backbone, an optimiser and a schedule of its own.
    model: directory or hub id it starts from; "" is the policy's start.  The head starts at 0, so that every value is
    0 before the first step.  pretrain: in so many first steps only the value model learns.
    Source: TRL (0.1 in one optimiser, clip 0.2), verl (an optimiser of its own at 1e-5, clip 0.5).
    """

    source = "PPO (arXiv 1707.06347), eq. (9); huggingface/trl: ppo_trainer.py; volcengine/verl: core_algos.py"
    level: ClassVar[str] = "token"
    clip: float | None = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    goes_on: str = "none"
    finished: bool = False
    shared: bool = False
    coefficient: float = 1.0
    model: str = ""
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: float = 1.0
    pretrain: int = 0

    def __post_init__(self) -> None:
        check_discounts(self, self.gamma, self.lam)
        if self.goes_on not in GOES_ON:
            raise unknown("choice of ValueLearning.goes_on", self.goes_on, GOES_ON)
        if self.clip is not None and self.clip <= 0:
            raise ConfigError(f"ValueLearning.clip must be positive (or None for no clip), got {self.clip}")
        if self.learning_rate <= 0 or self.coefficient <= 0 or min(self.warmup_steps, self.pretrain) < 0:
            raise ConfigError(f"ValueLearning: learning_rate, coefficient > 0, warmup_steps, pretrain >= 0; got {self}")
        if self.schedule not in ("constant", "linear", "cosine"):
            raise ConfigError(f"ValueLearning.schedule is constant, linear or cosine, got {self.schedule!r}")
        if self.shared and (self.model or self.pretrain):
            raise ConfigError(
                "ValueLearning: a shared backbone is the policy's, so model and pretrain have no meaning; "
                "leave them out, or set shared=false"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        return (
            *("reward", "scored", "token_reward", "trainable", "mask", "value", "returns", "live_value"),
            *(("unfinished",) if self.finished else ()),
            *((GOES_ON[self.goes_on],) if self.goes_on != "none" else ()),
        )

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (Values(),)

    @property
    def average(self) -> ValueTokens:
        """Which tokens the value model learns from, and their weights."""
        return ValueTokens(self.finished)

    def active(self, batch: Batch) -> Tensor:
        return self.average.where(batch)

    def returns(self, batch: Batch) -> Tensor:
        """[T] what the value model learns, 0 on tokens that do not take part."""
        where = self.active(batch)
        goes_on = going_on(batch, self.goes_on)
        advantage = gae(
            scored_reward(batch), batch.token_reward, batch.value, batch.layout, where, self.gamma, self.lam, goes_on
        )
        return torch.where(where, advantage + batch.value.to(advantage.dtype), torch.zeros_like(advantage))

    def measure(self, batch: Batch) -> Mapping[str, float]:
        where = self.active(batch)
        value, returns = batch.value[where].double(), batch.returns[where].double()
        if not len(value):
            return {}
        out = {"value/mean": float(value.mean())}
        spread = float(returns.var(unbiased=False))
        if spread > 0:
            out["value/explained"] = 1 - float((returns - value).var(unbiased=False)) / spread
        return out

    def __call__(self, batch: Batch) -> Tensor:
        where = self.active(batch)
        live: Tensor = batch.live_value
        zero = torch.zeros_like(live)
        value, old, target = (
            torch.where(where, x.to(live.dtype), zero) for x in (live, batch.value.detach(), batch.returns.detach())
        )
        return clipped_value_loss(value, old, target, self.clip)

    def formula(self) -> str:
        error = "1/2 (V - G)^2"
        if self.clip is not None:
            error = f"1/2 max((V - G)^2, (clip(V, V_old - {self.clip:g}, V_old + {self.clip:g}) - G)^2)"
        backbone = f"{self.coefficient:g} * " if self.coefficient != 1 else ""
        where = "head on the policy's backbone" if self.shared else f"own model, learning rate {self.learning_rate:g}"
        late = f", alone for {self.pretrain} steps" if self.pretrain else ""
        end = f",  V(s_end) = V(s_last) where {self.goes_on}" if self.goes_on != "none" else ""
        return (
            f"{backbone}{error},  G_t = V_old + sum_k {self.gamma * self.lam:g}^k d_t+k{end},  "
            f"{self.average.formula()};  {where}{late}"
        )
