"""Off-policy REINFORCE that stays bounded: a truncated sequence ratio on what should become less likely."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.advantage import RewardAdvantage
from unipo.parts.objective import PolicyGradient
from unipo.parts.part import LOG_RATIO_LIMIT, Pieces, log_ratio


def tapered_weight(
    log_ratio_s: Tensor, advantage_s: Tensor, positive: tuple[float, float], negative: tuple[float, float]
) -> Tensor:
    """Truncated importance weight whose limits depend on the sign: w_i = clip(pi(y_i)/mu(y_i), a, b).

    log_ratio_s: [S] nats, of the whole response; advantage_s: [S]; positive, negative: (a, b) for A >= 0 and A < 0.
    Returns [S] in [a, b].
    Source: TOPR (arXiv 2503.14286), general form; canonical limits (1, 1) and (0, 1).
    """
    ratio = log_ratio_s.clamp(max=LOG_RATIO_LIMIT).exp()
    return torch.where(advantage_s >= 0, ratio.clamp(*positive), ratio.clamp(*negative))


@dataclass(frozen=True)
class Tapered(PolicyGradient):
    """TOPR: weight 1 on good responses, the sequence's importance ratio truncated to [0, 1] on bad ones.

        l_it = -sg[w_i] A_it log pi(y_it),   w_i = clip(pi(y_i)/mu(y_i), a, b) by the sign of A_i

    mu is the policy that sampled (`behaviour_logp`), the ratio that of the whole response.  A bad response stops
    pushing once the policy has left it; a good one is imitated at full weight wherever the policy is.  (a, b):
    all 1 is plain off-policy REINFORCE, negatives at (0, 0) is imitation of the good ones, (0, 1) for both is
    truncated importance sampling.  Any lower limit above 0 for negatives degenerates in the end.
    The paper's runs divide by the response's length: use SequenceMean.
    Source: TOPR (arXiv 2503.14286).  No official code; the token ratios of alibaba/ROLL and modelscope/Trinity-RFT
    differ from the paper and are not followed.
    """

    source = "TOPR (arXiv 2503.14286)"
    positive: tuple[float, float] = (1.0, 1.0)
    negative: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        for low, high in (self.positive, self.negative):
            if not 0 <= low <= high:
                raise ConfigError(f"Tapered: limits (a, b) of the ratio need 0 <= a <= b, got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("advantage", "logp", "behaviour_logp", "mask")

    def active(self, batch: Batch) -> Tensor:
        """The ratio needs every counted token of a response, so a response is active as a whole."""
        layout: Layout = batch.layout
        alive = layout.seq_sum((batch.advantage != 0).to(torch.int64)) > 0
        active: Tensor = batch.mask & layout.to_tokens(alive)
        return active

    def weight(self, batch: Batch) -> Tensor:
        """[S] w_i, detached."""
        layout, mask = batch.layout, batch.mask
        ratio = layout.seq_sum(log_ratio(batch.logp.detach(), batch.behaviour_logp, mask))
        return tapered_weight(ratio, layout.seq_mean(batch.advantage, mask), self.positive, self.negative)

    def __call__(self, batch: Batch) -> Tensor:
        logp = torch.where(self.active(batch), batch.logp, torch.zeros_like(batch.logp))
        loss: Tensor = -batch.layout.to_tokens(self.weight(batch)) * batch.advantage * logp
        return loss

    def pieces(self, batch: Batch) -> Pieces:
        weight = batch.layout.to_tokens(self.weight(batch))
        return Pieces(batch.mask.to(weight.dtype), weight, batch.advantage)

    def formula(self) -> str:
        (a, b), (c, d) = self.positive, self.negative
        return (
            f"l_it = -sg[w_i] A_it log pi(y_it),  w_i = clip(pi(y_i)/mu(y_i), {a:g}, {b:g}) where A_i >= 0, "
            f"clip(pi(y_i)/mu(y_i), {c:g}, {d:g}) where A_i < 0"
        )


@dataclass(frozen=True)
class SignedReward(RewardAdvantage):
    """A_i = R_i - c with R_i = 1 where the reward is above `above`, -1 elsewhere. Unscored responses get 0.

    The baseline c sets the share of the gradient that good responses have: with true share p it becomes
    p (1 - c) / (1 + c (1 - 2p)).  c = -1 leaves only the good ones; 10 to 20 % was best in the paper.
    Source: TOPR (arXiv 2503.14286), section on the baseline.
    """

    source = "TOPR (arXiv 2503.14286)"
    baseline: float = 0.0
    above: float = 0.5

    def __post_init__(self) -> None:
        if not -1 <= self.baseline <= 1:
            raise ConfigError(f"SignedReward.baseline lies between the two rewards -1 and 1, got {self.baseline}")

    def __call__(self, batch: Batch) -> Tensor:
        good = torch.where(batch.scored, batch.reward, torch.zeros_like(batch.reward)) > self.above
        signed = good.to(batch.reward.dtype) * 2 - 1 - self.baseline
        return torch.where(batch.scored, signed, torch.zeros_like(signed))

    def formula(self) -> str:
        shift = f" - {self.baseline:g}" if self.baseline else ""
        return f"A_i = (1 if R_i > {self.above:g} else -1){shift}"
