"""Which prompts, responses or tokens take part in an update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.parts.part import Selection


@dataclass(frozen=True)
class DynamicSampling(Selection):
    """Keep a prompt only if its responses differ in the task's own score, and sample on until enough are kept.

    The test is on `score` (accuracy), not on the shaped reward: with a length term almost every group varies.
    With a 0/1 score it reads 0 < #right < G; with partial credit, max > min.
    rounds: at most this many sampling rounds per update; 0 is no limit.  when_dry: what to do when they are used
    up with too few prompts kept: 'train' on what there is (an update without any is skipped and counted), or
    'raise'.  surplus: qualifying prompts beyond the need are kept for the next update ('keep') or dropped
    ('drop', as verl does; the paper does not say).
    Source: DAPO (arXiv 2503.14476), eq. (11); recipe in volcengine/verl, whose limit is 10 rounds.
    """

    source = "DAPO (arXiv 2503.14476), eq. (11); verl recipe/dapo"
    level: ClassVar[str] = "prompt"
    refill: ClassVar[bool] = True
    smallest_group: ClassVar[int] = 2
    rounds: int = 10
    when_dry: str = "train"
    surplus: str = "drop"

    def __post_init__(self) -> None:
        if self.when_dry not in ("train", "raise") or self.surplus not in ("drop", "keep") or self.rounds < 0:
            raise ConfigError(f"DynamicSampling: when_dry is train|raise, surplus drop|keep, rounds >= 0; got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("score", "scored")

    def __call__(self, batch: Batch) -> Tensor:
        return ~batch.layout.group_constant(batch.score, batch.scored)

    def formula(self) -> str:
        return f"keep x if 0 < #right(x) < G; resample, at most {self.rounds or 'any number of'} rounds"


@dataclass(frozen=True)
class FreshTokens(Selection):
    """Only tokens written at this step take part, so that each is trained on once, at the step that wrote it.

    skip_last: leave out so many last tokens of a response that goes on, whose advantages are the noisiest.
    Source: T-PPO (arXiv 2506.15050), token filtering.
    """

    source = "T-PPO (arXiv 2506.15050), token filtering"
    level: ClassVar[str] = "token"
    skip_last: int = 0

    def __post_init__(self) -> None:
        if self.skip_last < 0:
            raise ConfigError(f"FreshTokens.skip_last must not be negative, got {self.skip_last}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("fresh", "unfinished") if self.skip_last else ("fresh",)

    def __call__(self, batch: Batch) -> Tensor:
        fresh: Tensor = batch.fresh
        if not self.skip_last:
            return fresh
        layout = batch.layout
        left = layout.seq_lengths[layout.token_seq] - layout.token_position  # tokens from here to the end, inclusive
        return fresh & ~(layout.to_tokens(batch.unfinished) & (left <= self.skip_last))

    def formula(self) -> str:
        last = f", nor the last {self.skip_last} of a response that goes on" if self.skip_last else ""
        return f"m_it = 0 unless token t was written at this step{last}"


@dataclass(frozen=True)
class DropTruncated(Selection):
    """Overlong filtering: a response cut off by the token budget leaves the loss and its denominator.

    Its reward still counts in the group's statistics.  Source: DAPO (arXiv 2503.14476), sec. 3.4.
    """

    source = "DAPO (arXiv 2503.14476), sec. 3.4"
    level: ClassVar[str] = "sequence"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("truncated",)

    def __call__(self, batch: Batch) -> Tensor:
        truncated: Tensor = batch.truncated
        return ~truncated

    def formula(self) -> str:
        return "m_it = 0 if response i was cut off"
