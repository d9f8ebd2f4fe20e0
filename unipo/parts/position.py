"""Credit by place: positions of a response at which the group's next-token distributions differ weigh more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.layout import Layout, segment_extreme, segment_sum
from unipo.parts.part import Credit, Scorer, Signal
from unipo.signals import informative_prompts

DIFFERENCE_LIMIT = 11.0
FLOOR = -1e4  # a log-prob of -inf on both sides is no difference


def place_disagreement(logp: Tensor, place: Tensor, group: Tensor) -> Tensor:
    """How much the distributions of a group differ at one place of its responses. [m] >= 0, 0 iff all are equal.

        m_v = mean_i lp_iv;   D = mean_i sum_v [exp(m_v - lp_iv) - (m_v - lp_iv) - 1],  m_v - lp_iv clipped to +-11

    logp: [n, V] log-probs; place: [n] in [0, m), ascending; group: [m] size G of each place's group.  Responses of
    the group without a row at a place (they have ended) count as uniform, lp = -log V.  m is a mean of log-probs,
    not a distribution; the sum over v is not weighted by a probability, so rare tokens count like frequent ones.
    Source: longmalongma/TW-GRPO: grpo_trainer.py (compute_token_importance_kl_logs_uniform).
    """
    places = len(group)
    logp = logp.clamp(min=FLOOR)
    uniform = -math.log(logp.shape[1])
    rows = torch.bincount(place, minlength=places)
    ended = (group - rows).to(logp.dtype)[:, None]
    size = group.to(logp.dtype)[:, None]
    # Means are taken of differences from the first row, so that equal rows have a difference of exactly 0.
    first = logp[rows.cumsum(0) - rows]
    mean = first + (segment_sum(logp - first[place], place, places) + ended * (uniform - first)) / size
    own = segment_sum(_k3(mean[place] - logp).sum(1), place, places)
    return (own + ended[:, 0] * _k3(mean - uniform).sum(1)) / size[:, 0]


def _k3(d: Tensor) -> Tensor:
    d = d.clamp(-DIFFERENCE_LIMIT, DIFFERENCE_LIMIT)
    return torch.expm1(d) - d


def position_weight(disagreement: Tensor, layout: Layout, where: Tensor, alpha: float) -> Tensor:
    """w_t = 1 + (alpha - 1) (D_t - min D) / (max D - min D + 1e-8), extremes over the prompt's group. [T].

    disagreement: [T], equal for the tokens of one place; where: [T] bool, tokens that count.  1 elsewhere, and
    where nothing differs.
    Source: TW-GRPO (arXiv 2505.24718); longmalongma/TW-GRPO: grpo_trainer.py.
    """
    value, owner = disagreement[where], layout.token_prompt[where]
    low, high = (segment_extreme(value, owner, layout.n_prompts, largest) for largest in (False, True))
    weight = torch.ones_like(disagreement)
    weight[where] = 1 + (alpha - 1) * (value - low[owner]) / (high[owner] - low[owner] + 1e-8)
    return weight


@dataclass(frozen=True)
class Disagreement(Signal):
    """Column `disagreement` [T]: `place_disagreement` at each token's place, under the policy as it is.

    Over scored responses and tokens that the policy wrote, of prompts with any advantage; 0 elsewhere.  One pass
    over them without gradient, with whole distributions (at the sampling temperature) that never exist all at once.
    """

    source = "longmalongma/TW-GRPO: grpo_trainer.py"
    adds: ClassVar[tuple[str, ...]] = ("disagreement",)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("tokens", "context", "trainable", "scored", "advantage")

    def __call__(self, batch: Batch, scorer: Scorer) -> dict[str, Tensor]:
        layout = batch.layout
        chosen = batch.scored & layout.to_sequences(informative_prompts(batch))
        out = torch.zeros(layout.n_tokens, dtype=torch.float64, device=batch.tokens.device)
        if bool(chosen.any()):
            part = batch.take_sequences(chosen)
            value = scorer.per_place(part, part.trainable, place_disagreement)
            out[layout.to_tokens(chosen)] = value.to(out.dtype)
        return {"disagreement": out}

    def formula(self) -> str:
        return (
            "D_t = mean_i sum_v [exp(m_tv - lp_itv) - (m_tv - lp_itv) - 1],  m = mean_i lp,  lp = log pi(v | x, y_i<t)"
        )


@dataclass(frozen=True)
class PositionWeight(Credit):
    """TW-GRPO: A_it <- w_t A_it, with one weight in [1, alpha] for each place, the same for the whole group.

    With a surrogate that is homogeneous in the advantage (every clip here) this is w_t times the token's loss; the
    weights are not in the denominator.  Responses are aligned by index, whatever they say there.
    alpha: 1.7 in the released script, 1.4 is its code's default.
    The released code lets gradient flow through the weights; here they are detached, and it gets its
    distributions from the training pass, where this takes one more.  A KL regulariser is not weighed (its beta
    is 0 in the release).
    Source: TW-GRPO (arXiv 2505.24718); longmalongma/TW-GRPO: grpo_trainer.py.
    Unsure: the paper's formula of the weight (this is the one that ran); whether its numbers used alpha 1.7.
    """

    source = "TW-GRPO (arXiv 2505.24718); longmalongma/TW-GRPO: grpo_trainer.py"
    smallest_group: ClassVar[int] = 2
    alpha: float = 1.7

    def __post_init__(self) -> None:
        if self.alpha < 1:
            raise ConfigError(f"PositionWeight.alpha must be at least 1 (no weight), got {self.alpha}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("advantage", "disagreement", "trainable", "scored") if self.alpha > 1 else ("advantage",)

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (Disagreement(),) if self.alpha > 1 else ()

    def __call__(self, batch: Batch) -> Tensor:
        advantage: Tensor = batch.advantage
        if self.alpha == 1:
            return advantage
        where = batch.trainable & batch.layout.to_tokens(batch.scored)
        return advantage * position_weight(batch.disagreement, batch.layout, where, self.alpha).to(advantage.dtype)

    def formula(self) -> str:
        return f"A_it *= 1 + {self.alpha - 1:g} (D_t - min_t D)/(max_t D - min_t D + 1e-8)"
