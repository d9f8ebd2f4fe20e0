"""Length and repetition: shaping terms, each a formula with sharp edges that models exploit.

Lengths are TOKENS (`Sample.length`, the end token included), never characters: open-r1 counts characters in
its cosine and Kimi terms, which pays short alphabets.  The boundary behaviour is the specification, so it is
written at each function and tested.

Trap when combining: in a group whose task reward is constant the group's spread comes from shaping alone, and
dividing by the group's standard deviation turns a difference of 0.01 into advantages of order 1.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from unipo.errors import ConfigError, RewardError, unknown
from unipo.rewards.policy import checked, leaf_scores, shorten
from unipo.tasks.task import Reward, Sample, Scores


def soft_overlong(length: float, limit: float, cache: float) -> float:
    """Soft overlong punishment: none up to limit - cache, then linearly down to -1 at the limit and beyond.

    0 if L <= limit - cache;  (limit - cache - L) / cache if limit - cache < L <= limit;  -1 if L > limit.
    length, limit, cache: tokens.  cache = 0 is a hard step (0 at the limit, -1 above it).  Raises ConfigError
    unless 0 <= cache <= limit.
    Source: DAPO (arXiv 2503.14476), eq. (13), with limit 20480 and cache 4096.  The form in volcengine/verl is
    not clamped below -1, which is the same as long as generation stops at the limit.
    """
    if not 0 <= cache <= limit:
        raise ConfigError(f"soft overlong needs 0 <= cache <= limit, got cache {cache!r}, limit {limit!r}")
    start = limit - cache
    if length <= start:
        return 0.0
    return -1.0 if length > limit else (start - length) / cache


def cosine(length: float, limit: float, at_zero: float, at_limit: float) -> float:
    """Half a cosine from `at_zero` at length 0 to `at_limit` at the limit, and flat from there on.

    f = at_limit + (at_zero - at_limit)/2 * (1 + cos(pi * min(L/limit, 1))).  length, limit: tokens.
    Source: Demystifying Long CoT (arXiv 2502.03373), section 4.2.  huggingface/open-r1 does not clamp L/limit,
    so past the limit its cosine turns back up and long answers pay again.  Raises ConfigError unless limit > 0.
    """
    if not limit > 0:
        raise ConfigError(f"the cosine reward needs a limit above 0 tokens, got {limit!r}")
    return at_limit + 0.5 * (at_zero - at_limit) * (1.0 + math.cos(math.pi * min(length / limit, 1.0)))


def kimi_length(lengths: Sequence[float], correct: Sequence[bool], groups: Sequence[Hashable]) -> list[float]:
    """Kimi's length reward, within each group of responses to one prompt.

    l_i = 0.5 - (L_i - L_min) / (L_max - L_min), in [-0.5, 0.5]; a correct response gets l_i, a wrong one
    min(0, l_i); 0 for all where L_max == L_min.  lengths: tokens.  L_min and L_max are over the members of
    the same group, right and wrong (huggingface/open-r1 takes them over whatever batch it is handed).
    Source: Kimi k1.5 (arXiv 2501.12599), section 2.3.3, which starts training without it and warms it up.
    Raises ValueError if the three sequences differ in length.
    """
    members: dict[Hashable, list[float]] = {}
    for length, group in zip(lengths, groups, strict=True):
        members.setdefault(group, []).append(length)
    values = []
    for length, right, group in zip(lengths, correct, groups, strict=True):
        low, high = min(members[group]), max(members[group])
        value = 0.0 if high == low else 0.5 - (length - low) / (high - low)
        values.append(value if right else min(0.0, value))
    return values


def repetition(units: Sequence[Hashable], n: int = 3, penalty: float = -1.0) -> float:
    """Penalty for repeated n-grams: penalty * (1 - distinct / total), 0 with fewer than n units.

    units: tokens (ids), words or characters.  penalty <= 0: the value approached when everything repeats.
    Source: Demystifying Long CoT (arXiv 2502.03373), which applies it per repeated token (recalled, not
    checked); the per-response form is what huggingface/trl and open-r1 ship.  Raises ConfigError for a
    penalty above 0, which would pay for looping, and for n < 1.
    """
    if penalty > 0:
        raise ConfigError(f"the repetition penalty must be <= 0, got {penalty!r}: above 0 it would pay for looping")
    if n < 1:
        raise ConfigError(f"the repetition penalty needs n >= 1, got {n!r}")
    total = len(units) - n + 1
    if total < 1:
        return 0.0
    distinct = len({tuple(units[i : i + n]) for i in range(total)})
    return penalty * (1.0 - distinct / total) if distinct < total else 0.0


def token_length(sample: Sample, name: str) -> int:
    """The sample's length in tokens. Raises RewardError where text has length 0: nobody counted it."""
    if sample.length < 1 and sample.text:
        raise RewardError(
            f"reward {name!r} needs Sample.length in tokens, but it is {sample.length} for the completion "
            f"{shorten(sample.text, 120)}; whoever makes the samples must set it"
        )
    return sample.length


@dataclass(frozen=True)
class SoftOverlong:
    """DAPO's soft overlong punishment, in [-1, 0]; see `soft_overlong`. Add it to a task reward.

    limit: most tokens a response may have.  cache: tokens before the limit over which it fades in.
    """

    limit: int
    cache: int
    name: str = "overlong"
    penalty_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        soft_overlong(0, self.limit, self.cache)

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        lengths = [token_length(sample, self.name) for sample in samples]
        return leaf_scores(self.name, [soft_overlong(length, self.limit, self.cache) for length in lengths])


@dataclass(frozen=True)
class Repetition:
    """N-gram repetition penalty over the text, in [penalty, 0]; see `repetition`. Add it to a task reward.

    split: "words" (lower-cased, at white space) or "characters", which also sees loops in languages written
    without spaces; take a larger n with it, since letters repeat in any text.
    """

    n: int = 3
    penalty: float = -1.0
    split: Literal["words", "characters"] = "words"
    name: str = "repetition"
    penalty_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        repetition((), self.n, self.penalty)
        if self.split not in ("words", "characters"):
            raise unknown("split of the repetition penalty", str(self.split), ("words", "characters"))

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        texts = [sample.text.lower() for sample in samples]
        units = [list(text) if self.split == "characters" else text.split() for text in texts]
        return leaf_scores(self.name, [repetition(unit, self.n, self.penalty) for unit in units])


@dataclass(frozen=True)
class Cosine:
    """Replaces a task's reward by one that also depends on length: short right answers pay most, short wrong
    ones cost most; see `cosine`.

    reward: the task.  A response is right when its score reaches `right_from`.  limit: tokens.
    right, wrong: the values at length 0 and at the limit.  past_limit: the value of a longer response, whatever
    it says (the paper's r_exceed, -10 there as recalled); None keeps the value at the limit.
    `score` stays the task's own; `parts` holds the task's parts and the cosine.
    """

    reward: Reward
    limit: int
    right: tuple[float, float] = (1.0, 0.5)
    wrong: tuple[float, float] = (-1.0, -0.5)
    past_limit: float | None = None
    right_from: float = 1.0
    name: str = "cosine"

    def __post_init__(self) -> None:
        cosine(0, self.limit, 0.0, 0.0)

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        task = checked(self.reward, samples)
        values: list[float | None] = []
        for sample, score in zip(samples, task.score, strict=True):
            length = token_length(sample, self.name)
            if score is None:
                values.append(None)
            elif self.past_limit is not None and length > self.limit:
                values.append(self.past_limit)
            else:
                at_zero, at_limit = self.right if score >= self.right_from else self.wrong
                values.append(cosine(length, self.limit, at_zero, at_limit))
        parts = {self.reward.name: task.total, **task.parts, self.name: list(values)}
        return Scores(values, task.score, parts, task.extracted, task.events)


@dataclass(frozen=True)
class KimiLength:
    """A task's reward plus weight times Kimi's length reward within each prompt's group; see `kimi_length`.

    reward: the task.  A response is right when its score reaches `right_from`.
    group: what makes samples one group: "prompt" (the same prompt text) or the name of a field of the data
    row, which is safer where two rows may share a prompt.  All samples of a group must come in one call.
    Samples the task cannot score leave the group's L_min and L_max and get None.
    `score` stays the task's own; `parts` holds the task's parts and the unweighted length reward.
    """

    reward: Reward
    weight: float = 1.0
    group: str = "prompt"
    right_from: float = 1.0
    name: str = "kimi"

    def _key(self, sample: Sample) -> Hashable:
        if self.group == "prompt":
            return sample.prompt
        if self.group not in sample.row:
            raise unknown(f"field of the data row (group of reward {self.name!r})", self.group, map(str, sample.row))
        key: Hashable = sample.row[self.group]
        return key

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        task = checked(self.reward, samples)
        kept = [i for i, score in enumerate(task.score) if score is not None and task.total[i] is not None]
        lengths = [token_length(samples[i], self.name) for i in kept]
        right = [(task.score[i] or 0.0) >= self.right_from for i in kept]
        values = kimi_length(lengths, right, [self._key(samples[i]) for i in kept])
        total: list[float | None] = [None] * len(samples)
        part: list[float | None] = [None] * len(samples)
        for i, value in zip(kept, values, strict=True):
            part[i], total[i] = value, (task.total[i] or 0.0) + self.weight * value
        parts = {self.reward.name: task.total, **task.parts, self.name: part}
        return Scores(total, task.score, parts, task.extracted, task.events)
