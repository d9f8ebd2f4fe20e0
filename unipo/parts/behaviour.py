"""What a response did, read from its text or its tokens, and rewards and credit for doing it.

Each behaviour is a plain column that a signal makes without a model: `behaviour` (did it), `category` (which kind of
response), `first_call` (where it first called a tool).  A source, a task or a part of one's own may give the column
instead; then the signal does not run.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.layout import Layout
from unipo.parts.part import Credit, Derived, Scorer, Shaping, Signal
from unipo.parts.semantic import cluster_share


def check_pattern(owner: str, pattern: str) -> None:
    """Raise ConfigError unless the pattern is a regular expression."""
    try:
        re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(f"{owner}: {pattern!r} is not a regular expression: {error}") from error


# -- GCPO: did it, and did it help ------------------------------------------------------------------------------
@dataclass(frozen=True)
class Behaviour(Derived):
    """Column `behaviour` [S] bool: the response's text has a match of `pattern` ("." matches line ends)."""

    source = "GeometryZero (arXiv 2506.07160): auxiliary constructions"
    adds: ClassVar[tuple[str, ...]] = ("behaviour",)
    pattern: str = r"<aux>(?!\s*</aux>).*?</aux>"

    def __post_init__(self) -> None:
        check_pattern("Behaviour.pattern", self.pattern)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("text",)

    def derive(self, batch: Batch) -> dict[str, Tensor]:
        pattern = re.compile(self.pattern, re.DOTALL)
        found = [pattern.search(text) is not None for text in batch.text]
        return {"behaviour": torch.tensor(found, dtype=torch.bool, device=batch.layout.device)}

    def formula(self) -> str:
        return f"a_i = 1 if the text has a match of {self.pattern}"


def contrast_sign(right: Tensor, behaviour: Tensor, layout: Layout, where: Tensor, margin: float) -> Tensor:
    """Whether a behaviour went with success in this group: +1, -1 or 0. [P].

        m = +1 if acc_with - acc_without > margin, -1 if acc_without - acc_with > margin, else 0

    right: [S] accuracy in [0, 1]; behaviour: [S] bool; where: [S] bool, members that count.  0 where one of the
    two kinds is missing.
    Source: GeometryZero (arXiv 2506.07160), eq. (4) as summarised by its reviews.
    """
    did, did_not = where & behaviour, where & ~behaviour
    gap = layout.group_mean(right, did) - layout.group_mean(right, did_not)
    both = (layout.group_count(did) > 0) & (layout.group_count(did_not) > 0)
    least = margin + 1e-9 if margin else 0.0  # 4/5 - 3/5 is a little more than 0.2
    return torch.where(both & (gap.abs() > least), gap.sign(), torch.zeros_like(gap))


@dataclass(frozen=True)
class ContrastiveBonus(Shaping):
    """GCPO: a behaviour earns +strength where it helped in this group, -strength where it hurt, else nothing.

        R_i += strength * m_g * a_i,   m_g = contrast_sign(score, behaviour)

    margin: differences of accuracies up to it do not count.  0 lets one lucky response decide, and so does 1/G: one
    response moves a sub-group of n by 1/n, so four against four need 0.25.
    The accuracy is `score`, the task's own; the behaviour is a column (see the module).  Unscored responses
    count nowhere.  Two sub-groups sampled under different prompts need a source that gives `behaviour` itself,
    as the prompt that was used, with both sub-groups in one group.
    Source: GeometryZero (arXiv 2506.07160).
    Unsure: the exact form of its eq. (4), whether harm is punished or only not paid, strength and margin.
    """

    source = "GeometryZero (arXiv 2506.07160)"
    smallest_group: ClassVar[int] = 2
    strength: float = 0.5
    margin: float = 0.0
    signal: Signal = Behaviour()

    def __post_init__(self) -> None:
        if self.strength < 0 or self.margin < 0:
            raise ConfigError(f"ContrastiveBonus: strength and margin must not be negative, got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "score", "scored", "behaviour") if self.strength else ("reward",)

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (self.signal,) if self.strength else ()

    def __call__(self, batch: Batch) -> Tensor:
        reward: Tensor = batch.reward
        if not self.strength:
            return reward
        sign = contrast_sign(batch.score.to(reward.dtype), batch.behaviour, batch.layout, batch.scored, self.margin)
        return reward + self.strength * torch.where(batch.behaviour, batch.layout.to_sequences(sign), 0.0)

    def formula(self) -> str:
        return (
            f"R_i += {self.strength:g} m a_i,  m = sign(d) if |d| > {self.margin:g} else 0,  "
            "d = acc(a = 1) - acc(a = 0) in the group"
        )


@dataclass(frozen=True)
class LengthBonus(Shaping):
    """R_i += strength * min(T_i / limit, 1): room for reasoning in several steps.

    limit: tokens; 0 means the run's generation budget.

    Source: GeometryZero (arXiv 2506.07160); the shape is a guess, only its growth up to a cap is known.
    """

    source = "GeometryZero (arXiv 2506.07160)"
    strength: float = 0.1
    limit: int = 0

    def __post_init__(self) -> None:
        if self.strength < 0 or self.limit < 0:
            raise ConfigError(f"LengthBonus: strength and limit must not be negative, got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward",)

    def bound_to(self, max_tokens: int) -> Self:
        return self if self.limit else replace(self, limit=max_tokens)

    def __call__(self, batch: Batch) -> Tensor:
        if not self.limit:
            raise ConfigError("LengthBonus: set limit, or let the run fill in its token budget")
        reward: Tensor = batch.reward
        share = (batch.layout.seq_lengths.to(reward.dtype) / self.limit).clamp(max=1)
        return reward + self.strength * share

    def formula(self) -> str:
        return f"R_i += {self.strength:g} min(T_i/{self.limit or 'max_tokens'}, 1)"


# -- Ada-GRPO: which kind of response ------------------------------------------------------------------------------
@dataclass(frozen=True)
class Category(Derived):
    """Column `category` [S] int: which tag the response opens with (white space before it aside), -1 for none.

    tags: with white space between them; the first that fits counts.
    """

    source = "TEAM-ARM/ARM: core_algos.py (get_reasoning_format)"
    adds: ClassVar[tuple[str, ...]] = ("category",)
    tags: str = "<ANSWER> <COT> <CODE> <LONG_COT>"

    def __post_init__(self) -> None:
        if not self.tags.split():
            raise ConfigError("Category.tags names no tag; write them with white space between, <ANSWER> <COT>")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("text",)

    def derive(self, batch: Batch) -> dict[str, Tensor]:
        tags = self.tags.split()
        found = [next((k for k, tag in enumerate(tags) if text.lstrip().startswith(tag)), -1) for text in batch.text]
        return {"category": torch.tensor(found, dtype=torch.int64, device=batch.layout.device)}

    def formula(self) -> str:
        return f"f_i: the one of {self.tags} that the text opens with"


def rarity(category: Tensor, layout: Layout, where: Tensor, step: int, total_steps: int) -> Tensor:
    """alpha_i = 1 + (G/F_i - 1) (1 + cos(pi step / total)) / 2, F_i the responses of the group with i's category. [S].

    category: [S] int >= -1; where: [S] bool, members that count.  At least 1; 1 from step = total_steps on.  1 off
    `where`.
    Source: ARM (arXiv 2505.20258), Ada-GRPO; TEAM-ARM/ARM: core_algos.py.
    """
    share = cluster_share(category + 1, layout, where)
    fading = 0.5 * (1 + math.cos(math.pi * min(step, total_steps) / total_steps))
    inverse = torch.where(where, 1 / torch.where(where, share, torch.ones_like(share)), torch.ones_like(share))
    return 1 + fading * (inverse - 1)


@dataclass(frozen=True)
class RarityBonus(Shaping):
    """Ada-GRPO: rewards times the rarity of the response's format in its group, fading to 1 over the run.

        R_i <- rarity_i R_i

    Responses of no known category are a category of their own and get 0, whatever they earned (the authors'
    code asserts that their reward is 0).  The step counts from 1, so the last step is plain GRPO.
    Raises DataError where rewards were earned and no response of the batch has a category: the model was not
    taught the formats, or the tags are others.
    Source: ARM (arXiv 2505.20258); TEAM-ARM/ARM: core_algos.py.
    """

    source = "ARM (arXiv 2505.20258); TEAM-ARM/ARM: core_algos.py"
    smallest_group: ClassVar[int] = 2
    signal: Signal = Category()

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "scored", "category")

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (self.signal,)

    def __call__(self, batch: Batch) -> Tensor:
        reward, scored, category = batch.reward, batch.scored, batch.category
        if bool(((reward != 0) & scored).any()) and not bool((category[scored] >= 0).any()):
            raise DataError(
                f"no response of this batch has a known format ({self.signal.formula()}), so every reward would be 0. "
                "Teach the formats by supervised fine-tuning first, or set shaping.0.signal.tags"
            )
        factor = rarity(category, batch.layout, scored, batch.step, batch.total_steps).to(reward.dtype)
        return torch.where(scored & (category < 0), torch.zeros_like(reward), factor * reward)

    def formula(self) -> str:
        return "R_i *= 1 + (G/F(f_i) - 1) (1 + cos(pi step/steps))/2,  F: responses of the group with format f_i; 0 without one"


# -- ASPO: where the first call came ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class FirstToolCall(Derived):
    """Column `first_call` [S] int: tokens before the first tool output, -1 without one.

    Read off the tokens the policy did not write, so it is exact and needs no text: the call ends where the tool
    begins to speak.
    """

    source = "Understanding Tool-Integrated Reasoning (arXiv 2508.19201)"
    adds: ClassVar[tuple[str, ...]] = ("first_call",)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("trainable",)

    def derive(self, batch: Batch) -> dict[str, Tensor]:
        layout = batch.layout
        place = torch.where(batch.trainable, layout.n_tokens, layout.token_position)
        first = -layout.seq_max(-place)
        return {"first_call": torch.where((first >= 0) & (first < layout.n_tokens), first, -1)}

    def formula(self) -> str:
        return "p_i: place of the first token that the policy did not write"


@dataclass(frozen=True)
class FirstMarker(Signal):
    """Column `first_call` [S] int: tokens before the first match of `pattern` in the text, -1 without one.

    For calls that stand in the text (a code block that nobody runs).  The text before the match is encoded to be
    counted, which may differ from the sampled tokens by a few; no model runs.
    """

    source = "Understanding Tool-Integrated Reasoning (arXiv 2508.19201)"
    adds: ClassVar[tuple[str, ...]] = ("first_call",)
    pattern: str = r"```python"

    def __post_init__(self) -> None:
        check_pattern("FirstMarker.pattern", self.pattern)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("text",)

    def __call__(self, batch: Batch, scorer: Scorer) -> dict[str, Tensor]:
        pattern = re.compile(self.pattern, re.DOTALL)
        matches = [pattern.search(text) for text in batch.text]
        found = [
            -1 if m is None else len(scorer.encode(text[: m.start()]))
            for text, m in zip(batch.text, matches, strict=True)
        ]
        place = torch.tensor(found, dtype=torch.int64, device=batch.layout.device)
        return {"first_call": torch.minimum(place, (batch.layout.seq_lengths - 1).clamp(min=0))}

    def formula(self) -> str:
        return f"p_i: tokens before the first {self.pattern}"


def early_bias(
    advantage: Tensor, place: Tensor, length: Tensor, eligible: Tensor, layout: Layout, delta: float, k: float
) -> Tensor:
    """clip(delta (p_i - mean p) / mean L, -k |A_i|, k |A_i|) for the eligible, means over the eligible of the group. [S].

    advantage: [S]; place, length: [S] tokens; eligible: [S] bool.  0 for the others, for a lone eligible response,
    and where the advantage is 0.  For 0 < k < 1 it never turns an advantage's sign.
    Source: Understanding Tool-Integrated Reasoning (arXiv 2508.19201), ASPO.
    """
    place, length = place.to(advantage.dtype), length.to(advantage.dtype)
    mean_place = layout.to_sequences(layout.group_mean(place, eligible))
    mean_length = layout.to_sequences(layout.group_mean(length, eligible)).clamp(min=1)
    several = layout.to_sequences(layout.group_count(eligible)) > 1
    bound = k * advantage.abs()
    bias = torch.minimum(torch.maximum(delta * (place - mean_place) / mean_length, -bound), bound)
    return torch.where(eligible & several, bias, torch.zeros_like(bias))


@dataclass(frozen=True)
class EarlyCall(Credit):
    """ASPO: right responses that call a tool earlier than the others get more, by a clipped bias on the advantage.

        A_it <- A_it + early_bias_i   over right responses with a call

    Added after the group's normalisation, so a small standard deviation cannot blow it up, and bounded by
    k |A_i|, so it cannot turn a right response's sign.  delta < 0 favours early calls.  right: `score` above
    `threshold`.  own_tokens: count places and lengths in tokens that the policy wrote; else tool output counts too.
    Source: Understanding Tool-Integrated Reasoning (arXiv 2508.19201).
    Unsure: the text gives (delta, k) as (-2, 0.7) and (-2.5, 0.9), figure legends 1.5 with 0.7 and 2 with 0.9;
    whether tool tokens count in p and L.
    """

    source = "Understanding Tool-Integrated Reasoning (arXiv 2508.19201)"
    delta: float = -2.0
    k: float = 0.7
    threshold: float = 0.5
    own_tokens: bool = False
    signal: Signal = FirstToolCall()

    def __post_init__(self) -> None:
        if not 0 <= self.k < 1:
            raise ConfigError(f"EarlyCall.k must lie in [0, 1), or the bias could turn a sign; got {self.k}")

    @property
    def unit(self) -> str:
        return "response"

    @property
    def needs(self) -> tuple[str, ...]:
        if not self.delta or not self.k:
            return ("advantage",)
        return ("advantage", "sequence_advantage", "score", "scored", "first_call", "trainable")

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (self.signal,) if self.delta and self.k else ()

    def __call__(self, batch: Batch) -> Tensor:
        advantage: Tensor = batch.advantage
        if not self.delta or not self.k:
            return advantage
        layout, place, length = batch.layout, batch.first_call, batch.layout.seq_lengths
        eligible = batch.scored & (batch.score > self.threshold) & (place >= 0)
        if self.own_tokens:
            before = batch.trainable & (layout.token_position < layout.to_tokens(place))
            place, length = layout.seq_count(before), layout.seq_count(batch.trainable)
        bias = early_bias(batch.sequence_advantage, place, length, eligible, layout, self.delta, self.k)
        return advantage + layout.to_tokens(bias)

    def formula(self) -> str:
        return (
            f"A_it += clip({self.delta:g} (p_i - mean p)/mean L, -{self.k:g} |A_i|, {self.k:g} |A_i|)"
            "  over right responses with a call"
        )
