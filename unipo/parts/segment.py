"""Credit by segment: responses are cut where the policy was unsure, and each piece earns the rise of the value it brought.

Values come from sampling on from the cuts, not from a model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.advantage import RewardAdvantage, whitened
from unipo.parts.gae import scored_reward
from unipo.parts.part import Scorer, Selection, Signal


def segment_starts(logp: Tensor, layout: Layout, where: Tensor, threshold: float, interval: int) -> Tensor:
    """Tokens before which a response is cut: every `interval`-th uncertain one, starting with the first.

        U = { t : p_t < threshold };   cut before U[0], U[k], U[2k], ...
    logp: [T] nats, of the policy that sampled; where: [T] bool, tokens that may be cut before; k: interval >= 1.
    Returns [T] bool.  The state that is valued is the prefix that ends just before the token; before the first token
    it is the prompt itself.
    Source: SPO (arXiv 2505.23564), chain partition; AIFrameResearch/SPO (interval 5, threshold 0.9).
    """
    uncertain = where & (logp < math.log(threshold))
    running = uncertain.to(torch.int64).cumsum(0)
    before = (running - uncertain.to(torch.int64))[layout.seq_starts.clamp(max=max(layout.n_tokens - 1, 0))]
    rank = running - before[layout.token_seq] if layout.n_tokens else running  # from 1 inside each response
    return uncertain & ((rank - 1) % interval == 0)


def segment_differences(value: Tensor, starts: Tensor, reward: Tensor, layout: Layout) -> Tensor:
    """Every token of a segment gets what the segment brought: V(its end) - V(its start).

    value: [T], read where `starts`; starts: [T] bool, first token of each segment; reward: [S], the value at the end
    of the response.  Returns [T] in units of reward; 0 before the first cut, and everywhere in a response without one.
    With the first cut before the first token, one value per segment sums to R - V(prompt).
    Source: SPO (arXiv 2505.23564), segment advantage; AIFrameResearch/SPO.
    """
    at = starts.nonzero().flatten()
    if not len(at):
        return torch.zeros(layout.n_tokens, dtype=reward.dtype, device=reward.device)
    seq, own = layout.token_seq[at], value[at].to(reward.dtype)
    last = torch.ones_like(seq, dtype=torch.bool)
    last[:-1] = seq[1:] != seq[:-1]
    rise = torch.where(last, reward[seq], own.roll(-1)) - own
    latest = (starts.to(torch.int64).cumsum(0) - 1).clamp(
        min=0
    )  # the segment each token lies in, or another response's
    inside = starts.to(torch.int64).cumsum(0).gt(0) & (seq[latest] == layout.token_seq)
    return torch.where(inside, rise[latest], torch.zeros_like(rise[latest]))


@dataclass(frozen=True)
class Uncertain(Selection):
    """Only tokens the policy was unsure of take part: p_t < threshold under the weights that sampled them.

    Source: SPO (arXiv 2505.23564), probability mask; in its code also the denominator counts only these tokens.
    """

    source = "SPO (arXiv 2505.23564), probability mask; AIFrameResearch/SPO"
    level: ClassVar[str] = "token"
    threshold: float = 0.9

    def __post_init__(self) -> None:
        _check_threshold(self, self.threshold)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("behaviour_logp",)

    def __call__(self, batch: Batch) -> Tensor:
        logp: Tensor = batch.behaviour_logp
        return logp < math.log(self.threshold)

    def formula(self) -> str:
        return f"m_it = 0 if p_it >= {self.threshold:g}"


@dataclass(frozen=True)
class SegmentValues(Signal):
    """Mean reward of `continuations` fresh responses from every cut; each distinct prefix is continued once.

    Fills `segment_value`: [T], nan on tokens that begin no segment.  A cut none of whose continuations could be scored
    is not a cut.  truncated_reward: of continuations that ran out of tokens.
    """

    adds: ClassVar[tuple[str, ...]] = ("segment_value",)
    source = "SPO (arXiv 2505.23564); AIFrameResearch/SPO"
    threshold: float = 0.9
    interval: int = 5
    continuations: int = 9
    truncated_reward: float = 0.0

    @property
    def needs(self) -> tuple[str, ...]:
        return ("context", "tokens", "trainable", "scored", "behaviour_logp", "row", "answer", "sample_id")

    def starts(self, batch: Batch) -> Tensor:
        """[T] bool: where responses are cut."""
        where = batch.trainable & batch.layout.to_tokens(batch.scored)
        return segment_starts(batch.behaviour_logp, batch.layout, where, self.threshold, self.interval)

    def __call__(self, batch: Batch, scorer: Scorer) -> dict[str, Tensor]:
        layout = batch.layout
        out = torch.full((layout.n_tokens,), math.nan, dtype=torch.float64, device=batch.tokens.device)
        at = self.starts(batch).nonzero().flatten()
        if not len(at):
            return {"segment_value": out}
        prefixes: dict[tuple[int, ...], int] = {}
        which = []
        for t in at.tolist():
            begun = batch.tokens[int(layout.seq_starts[layout.token_seq[t]]) : t].tolist()
            which.append(prefixes.setdefault((int(layout.token_prompt[t]), *begun), len(prefixes)))
        first = torch.tensor([which.index(k) for k in range(len(prefixes))])
        drawn = scorer.continued(batch, at[first], self.continuations)
        reward = torch.where(drawn.truncated, torch.full_like(drawn.reward, self.truncated_reward), drawn.reward)
        out[at] = reward.nanmean(1)[torch.tensor(which)].to(out)
        return {"segment_value": out}

    def formula(self) -> str:
        return (
            f"V(x, y_<t) = mean reward of {self.continuations} continuations, before every {self.interval}. token "
            f"with p_t < {self.threshold:g}"
        )


@dataclass(frozen=True)
class SegmentDifference(RewardAdvantage):
    """See `segment_differences`; values from `SegmentValues`, then standardised over all counted tokens.

    Zero differences get a non-zero advantage by the mean's shift, as in the authors' code; whiten=False leaves them.
    """

    source = "SPO (arXiv 2505.23564), SPO-chain; AIFrameResearch/SPO"
    level: ClassVar[str] = "token"
    threshold: float = 0.9
    interval: int = 5
    continuations: int = 9
    truncated_reward: float = 0.0
    whiten: bool = True
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check_threshold(self, self.threshold)
        if self.interval < 1 or self.continuations < 1:
            raise ConfigError(f"SegmentDifference: interval and continuations must be at least 1, got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "scored", "mask", "segment_value")

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (SegmentValues(self.threshold, self.interval, self.continuations, self.truncated_reward),)

    def __call__(self, batch: Batch) -> Tensor:
        value: Tensor = batch.segment_value
        raw = segment_differences(value, ~value.isnan(), scored_reward(batch), batch.layout)
        raw = torch.where(batch.mask, raw, torch.zeros_like(raw))
        return whitened(raw, batch.mask, self.eps) if self.whiten else raw

    def formula(self) -> str:
        white = f";  A <- (A - mean)/sqrt(var + {self.eps:g}) over all counted tokens" if self.whiten else ""
        return f"A_t = V(end of t's segment) - V(its start),  V(y) = R{white}"


@dataclass(frozen=True)
class TreeDifference(RewardAdvantage):
    """The value at the end of a segment minus that at its start, both from a tree of samples: A = V(child) - V(parent).

    V(parent) is the mean over all children, this one included, so that siblings' advantages sum to 0.
    scale: divide by the siblings' standard deviation + eps ("grpo" in the authors' code; without it "rloo").
    Source: SPO (arXiv 2505.23564), SPO-tree; AIFrameResearch/SPO.
    Unsure: which of the two the published tree runs used; whether the deviation is biased (here: population).
    """

    source = "SPO (arXiv 2505.23564), SPO-tree; AIFrameResearch/SPO"
    scale: bool = False
    eps: float = 1e-8

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "scored", "parent_reward", *(("sibling_std",) if self.scale else ()))

    def __call__(self, batch: Batch) -> Tensor:
        rise = torch.where(batch.scored, scored_reward(batch) - batch.parent_reward, 0.0)
        return rise / (batch.sibling_std + self.eps) if self.scale else rise

    def formula(self) -> str:
        over = f" / (std over siblings + {self.eps:g})" if self.scale else ""
        return f"A_i = (V(child) - V(parent)){over},  V(leaf) = R,  V(inner) = mean over children"


def _check_threshold(part: object, threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ConfigError(f"{type(part).__name__}.threshold is a probability in (0, 1], got {threshold}")
