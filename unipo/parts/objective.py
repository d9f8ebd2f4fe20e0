"""Policy-gradient objectives: how the likelihood enters the loss.

Each reads `advantage` [T] and the live `logp` [T], and gives one loss per unit before averaging.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.part import LOG_RATIO_LIMIT, Objective, Pieces, inside_limit, log_ratio


def clipped_surrogate(ratio: Tensor, advantage: Tensor, low: float, high: float, dual: float | None = None) -> Tensor:
    """PPO's pessimistic surrogate: l = -min(rho A, clip(rho, 1 - low, 1 + high) A).

    ratio, advantage: same shape, unitless.  dual c > 1 additionally bounds the loss of negative advantages:
    l = min(l, -c A) where A < 0.  Gradient is exactly 0 for (A > 0, rho > 1 + high), (A < 0, rho < 1 - low) and,
    with dual clip, (A < 0, rho > c).
    Source: PPO (arXiv 1707.06347), eq. (7); asymmetric range DAPO (2503.14476); dual clip (1912.09729), verl
    core_algos.py.
    """
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    if dual is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -dual * advantage), loss)


def unclipped(ratio: Tensor, advantage: Tensor, low: float, high: float, dual: float | None = None) -> Tensor:
    """Bool: where `clipped_surrogate` has a gradient. Same shapes."""
    alive = torch.where(advantage > 0, ratio <= 1 + high, ratio >= 1 - low)
    return alive if dual is None else alive & ~((advantage < 0) & (ratio > dual))


def check_range(part: Objective, low: float, high: float) -> None:
    """Raise ConfigError unless 1 - low and 1 + high bound a ratio from below and above."""
    if not 0 <= low <= 1 or high < 0:
        raise ConfigError(f"{type(part).__name__}: the clip range needs 0 <= low <= 1 and high >= 0, got {part}")


def sequence_log_ratio(log_ratio_t: Tensor, layout: Layout, mask: Tensor, mean: bool) -> Tensor:
    """Sum (or mean) of token log-ratios over the counted tokens of each sequence. [T] -> [S]; 0 for an empty one."""
    return layout.seq_mean(log_ratio_t, mask) if mean else layout.seq_sum(log_ratio_t, mask)


@dataclass(frozen=True)
class PolicyGradient(Objective):
    """Base: tokens with zero advantage have zero gradient and are not computed."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("advantage", "logp", "old_logp", "mask")

    def active(self, batch: Batch) -> Tensor:
        active: Tensor = batch.mask & (batch.advantage != 0)
        return active


@dataclass(frozen=True)
class ScoreFunction(PolicyGradient):
    """REINFORCE: l_t = -A_t log pi(y_t), gradient -A_t grad log pi(y_t). Strictly on-policy: no ratio.

    Source: Williams 1992; Back to Basics (arXiv 2402.14740), eq. (6).
    """

    source = "Williams 1992; Back to Basics (arXiv 2402.14740), eq. (6)"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("advantage", "logp", "mask")

    def __call__(self, batch: Batch) -> Tensor:
        logp = torch.where(self.active(batch), batch.logp, torch.zeros_like(batch.logp))
        loss: Tensor = -batch.advantage * logp
        return loss

    def pieces(self, batch: Batch) -> Pieces:
        advantage: Tensor = batch.advantage
        return Pieces(batch.mask.to(advantage.dtype), torch.ones_like(advantage), advantage)

    def formula(self) -> str:
        return "l_it = -A_it log pi(y_it)"


@dataclass(frozen=True)
class Clipped(PolicyGradient):
    """PPO-clip per token. See `clipped_surrogate`. low, high: clip range; dual: None switches dual clip off."""

    source = "PPO (arXiv 1707.06347), eq. (7); DAPO (arXiv 2503.14476), eq. (8)"
    low: float = 0.2
    high: float = 0.2
    dual: float | None = None

    def __post_init__(self) -> None:
        check_range(self, self.low, self.high)
        if self.dual is not None and self.dual <= 1:
            raise ConfigError(f"Clipped.dual must be greater than 1 (or None for no dual clip), got {self.dual}")

    def _ratio(self, batch: Batch) -> Tensor:
        return log_ratio(batch.logp, batch.old_logp, batch.mask).exp()

    def __call__(self, batch: Batch) -> Tensor:
        return clipped_surrogate(self._ratio(batch), batch.advantage, self.low, self.high, self.dual)

    def pieces(self, batch: Batch) -> Pieces:
        ratio, advantage = self._ratio(batch).detach(), batch.advantage
        alive = inside_limit(batch.logp.detach(), batch.old_logp, batch.mask)
        alive = alive & unclipped(ratio, advantage, self.low, self.high, self.dual)
        return Pieces(alive.to(ratio.dtype), ratio, advantage)

    def formula(self) -> str:
        text = f"l_it = -min(rho_it A_it, clip(rho_it, {1 - self.low:g}, {1 + self.high:g}) A_it),  rho = pi/pi_old"
        return text if self.dual is None else f"{text};  where A < 0: min(l_it, -{self.dual:g} A_it)"


@dataclass(frozen=True)
class ClippedWeight(PolicyGradient):
    """CISPO: clip the importance weight, detached, and keep every token's score-function gradient.

        l_t = -sg[clip(rho_t, floor, cap)] A_t log pi(y_t)

    floor and cap are ABSOLUTE bounds on rho.  The paper has no effective floor and does not give its cap;
    ScaleRL (arXiv 2510.13786) finds caps of 4 to 8 equally good.  verl and EasyR1 write the bounds as offsets
    (1 - low, 1 + high); TRL writes an absolute cap, 5 recommended.  The loss value contains log pi and is not
    comparable between steps.
    Source: MiniMax-M1 (arXiv 2506.13585), eqs. (4)-(5).
    Unsure: the published runs' cap; whether they used a KL guard; behaviour with negative advantages far off-policy.
    """

    source = "MiniMax-M1 (arXiv 2506.13585), eqs. (4)-(5); huggingface/trl: grpo_trainer.py"
    floor: float = 0.0
    cap: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= self.cap:
            raise ConfigError(f"ClippedWeight needs 0 <= floor <= cap (absolute bounds on the ratio), got {self}")

    def _weight(self, batch: Batch) -> Tensor:
        ratio = log_ratio(batch.logp.detach(), batch.old_logp, batch.mask).exp()
        return ratio.clamp(self.floor, self.cap)

    def __call__(self, batch: Batch) -> Tensor:
        logp = torch.where(self.active(batch), batch.logp, torch.zeros_like(batch.logp))
        loss: Tensor = -self._weight(batch) * batch.advantage * logp
        return loss

    def pieces(self, batch: Batch) -> Pieces:
        weight = self._weight(batch)
        return Pieces(batch.mask.to(weight.dtype), weight, batch.advantage)

    def formula(self) -> str:
        return f"l_it = -sg[clip(rho_it, {self.floor:g}, {self.cap:g})] A_it log pi(y_it),  rho = pi/pi_old"


@dataclass(frozen=True)
class SequenceClipped(PolicyGradient):
    """One ratio and one clip per response.

        geometric mean (GSPO):  s_i = exp((1/T_i) sum_t log rho_it)
        product (RLOO as TRL):  s_i = exp(sum_t log rho_it)
        l_i = -min(s_i A_i, clip(s_i, 1 - low, 1 + high) A_i)

    A_i is the mean of the response's token advantages.  Where advantages differ inside a response, `per_token`
    gives GSPO-token: l_it uses sg[s_i] pi_it / sg[pi_it] and A_it; it needs an average over tokens and equals
    the sequence form in value and gradient when A_it = A_i under SequenceMean.
    An empty response has s = 1 and no gradient.
    Source: GSPO (arXiv 2507.18071), eqs. (5)-(7); volcengine/verl core_algos.py, huggingface/trl grpo_trainer.py
    (importance_sampling_level="sequence").
    Unsure: the authors' full hyper-parameter table (group size, learning rate) is not public.
    """

    source = "GSPO (arXiv 2507.18071), eqs. (5)-(7)"
    level: ClassVar[str] = "sequence"
    low: float = 3e-4
    high: float = 4e-4
    geometric: bool = True

    def __post_init__(self) -> None:
        check_range(self, self.low, self.high)

    def active(self, batch: Batch) -> Tensor:
        """The ratio needs every counted token of a response, so a response is active as a whole."""
        layout = batch.layout
        any_advantage = layout.seq_sum((batch.advantage != 0).to(torch.int64)) > 0
        active: Tensor = batch.mask & layout.to_tokens(any_advantage)
        return active

    def _ratio(self, batch: Batch) -> Tensor:
        return self._log_ratio(batch).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()

    def _log_ratio(self, batch: Batch) -> Tensor:
        token = log_ratio(batch.logp, batch.old_logp, batch.mask)
        return sequence_log_ratio(token, batch.layout, batch.mask, self.geometric)

    def _advantage(self, batch: Batch) -> Tensor:
        return batch.layout.seq_mean(batch.advantage, batch.mask)

    def __call__(self, batch: Batch) -> Tensor:
        return clipped_surrogate(self._ratio(batch), self._advantage(batch), self.low, self.high)

    def pieces(self, batch: Batch) -> Pieces:
        layout, ratio, advantage = batch.layout, self._ratio(batch).detach(), self._advantage(batch)
        alive_s = unclipped(ratio, advantage, self.low, self.high)
        alive_s = alive_s & (self._log_ratio(batch).detach().abs() <= LOG_RATIO_LIMIT)
        alive = layout.to_tokens(alive_s) & inside_limit(batch.logp.detach(), batch.old_logp, batch.mask)
        share = advantage / layout.seq_count(batch.mask).clamp(min=1) if self.geometric else advantage
        return Pieces(alive.to(ratio.dtype), layout.to_tokens(ratio), layout.to_tokens(share))

    def formula(self) -> str:
        power = "^(1/T_i)" if self.geometric else ""
        return f"l_i = -min(s_i A_i, clip(s_i, {1 - self.low:g}, {1 + self.high:g}) A_i),  s_i = (prod_t rho_it){power}"


@dataclass(frozen=True)
class SequenceClippedToken(SequenceClipped):
    """GSPO-token: the sequence ratio, with an advantage of its own for each token.

        s_it = sg[s_i] pi_it / sg[pi_it],  l_it = -min(s_it A_it, clip(s_it, 1 - low, 1 + high) A_it)

    Equal to `SequenceClipped` in value and gradient under SequenceMean when A_it = A_i.
    Source: GSPO (arXiv 2507.18071), eqs. (13)-(14); volcengine/verl core_algos.py.
    """

    source = "GSPO (arXiv 2507.18071), eqs. (13)-(14)"
    level: ClassVar[str] = "token"

    def _token_ratio(self, batch: Batch) -> Tensor:
        live = torch.where(batch.mask, batch.logp, torch.zeros_like(batch.logp))
        return batch.layout.to_tokens(self._ratio(batch).detach()) * (live - live.detach()).exp()

    def __call__(self, batch: Batch) -> Tensor:
        return clipped_surrogate(self._token_ratio(batch), batch.advantage, self.low, self.high)

    def pieces(self, batch: Batch) -> Pieces:
        ratio = self._token_ratio(batch).detach()
        alive = batch.mask & unclipped(ratio, batch.advantage, self.low, self.high)
        return Pieces(alive.to(ratio.dtype), ratio, batch.advantage)

    def formula(self) -> str:
        bounds = f"{1 - self.low:g}, {1 + self.high:g}"
        return f"l_it = -min(s_it A_it, clip(s_it, {bounds}) A_it),  s_it = sg[s_i] pi_it/sg[pi_it]"
