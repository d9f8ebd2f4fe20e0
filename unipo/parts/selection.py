"""Which prompts, responses or tokens take part in an update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.parts.part import Selection


@dataclass(frozen=True)
class Refill(Selection):
    """A selection of prompts whose losses are made good by sampling further prompts.

    rounds: at most this many sampling rounds per update; 0 is no limit.  when_dry: what to do when they are used
    up with too few prompts kept: 'train' on what there is (an update without any is skipped and counted), 'fill'
    the batch with dropped prompts in the order of `tier`, or 'raise'.  surplus: qualifying prompts beyond the need
    are dropped ('drop'), kept for the next update ('keep'), or trained on now ('use').
    """

    rounds: int = 10
    when_dry: str = "train"
    surplus: str = "drop"

    def __post_init__(self) -> None:
        known = self.when_dry in ("train", "fill", "raise") and self.surplus in ("drop", "keep", "use")
        if not known or self.rounds < 0:
            raise ConfigError(
                f"{type(self).__name__}: when_dry is train|fill|raise, surplus drop|keep|use, rounds >= 0; got {self}"
            )

    def tier(self, batch: Batch) -> Tensor:
        """[P] int: which dropped prompts fill a dry batch first (lowest), in the order they were sampled."""
        return torch.zeros(batch.layout.n_prompts, dtype=torch.int64)

    @property
    def limit(self) -> str:
        """The number of rounds, for a formula."""
        return f"at most {self.rounds or 'any number of'} rounds"


def mixed_outcomes(batch: Batch) -> Tensor:
    """[P] bool: the scored responses of a prompt differ in the task's own score.

    The test is on `score` (accuracy), not on the shaped reward: with a length term almost every group varies.
    With a 0/1 score it reads 0 < #right < G; with partial credit, max > min.
    """
    return ~batch.layout.group_constant(batch.score, batch.scored)


@dataclass(frozen=True)
class DynamicSampling(Refill):
    """Keep a prompt only if its responses differ in the task's own score, and sample on until enough are kept.

    See `mixed_outcomes`, and `Refill` for the settings.  What happens to surplus prompts the paper does not say;
    verl drops them.
    Source: DAPO (arXiv 2503.14476), eq. (11); recipe in volcengine/verl, whose limit is 10 rounds.
    """

    source = "DAPO (arXiv 2503.14476), eq. (11); verl recipe/dapo"
    smallest_group: ClassVar[int] = 2

    @property
    def needs(self) -> tuple[str, ...]:
        return ("score", "scored")

    def __call__(self, batch: Batch) -> Tensor:
        return mixed_outcomes(batch)

    def formula(self) -> str:
        return f"keep x if 0 < #right(x) < G; resample, {self.limit}"


@dataclass(frozen=True)
class MixedOutcomes(Selection):
    """Keep a prompt only if its responses differ in the task's own score; nothing is sampled in place of the others.

    See `mixed_outcomes`.  The batch gets smaller; an update without any prompt is skipped and counted.
    Source: csuking/CLPO: verl/trainer/ppo/ray_trainer.py.
    """

    source = "csuking/CLPO: verl/trainer/ppo/ray_trainer.py"
    smallest_group: ClassVar[int] = 2

    @property
    def needs(self) -> tuple[str, ...]:
        return ("score", "scored")

    def __call__(self, batch: Batch) -> Tensor:
        return mixed_outcomes(batch)

    def formula(self) -> str:
        return "keep x if 0 < #right(x) < G"


@dataclass(frozen=True)
class PassRateBand(Refill):
    """Keep a prompt only if the current policy's pass rate on it lies strictly inside a band.

        keep x if low < p(x) < high,   p(x) = mean score of the scored responses of x
    A prompt teaches in proportion to p(1 - p): the KL between the policy and its optimum pi exp(R/b)/Z is
    p(1 - p)/(2 b^2) + O(b^-3).  low 0, high 1 is dynamic sampling where scores are 0 or 1; low < 0 and high > 1
    keep everything.  A batch that runs dry is filled with prompts of mixed outcome first, then with any.
    Source: Online Difficulty Filtering (arXiv 2504.03380); no public code.
    """

    source = "Online Difficulty Filtering (arXiv 2504.03380)"
    when_dry: str = "fill"
    low: float = 0.3
    high: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise ConfigError(f"PassRateBand needs low < high, got {self.low} and {self.high}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("score", "scored")

    def __call__(self, batch: Batch) -> Tensor:
        rate = batch.layout.group_mean(batch.score, batch.scored)
        return (rate > self.low) & (rate < self.high)

    def tier(self, batch: Batch) -> Tensor:
        return (~mixed_outcomes(batch)).to(torch.int64)

    def formula(self) -> str:
        return f"keep x if {self.low:g} < mean score(x) < {self.high:g}; resample, {self.limit}"


@dataclass(frozen=True)
class VarianceAbove(Refill):
    """Keep a prompt only if the scores of its responses vary enough: var_g(score) > least (population variance).

    What `PassRateBand` becomes for scores that are not 0 or 1; for those, var = p(1 - p), so that the band
    (0.3, 0.7) is least = 0.21.  A batch that runs dry is filled with prompts of mixed outcome first, then with any.
    Source: Online Difficulty Filtering (arXiv 2504.03380), second version, beyond binary rewards.
    """

    source = "Online Difficulty Filtering (arXiv 2504.03380), second version"
    smallest_group: ClassVar[int] = 2
    when_dry: str = "fill"
    least: float = 0.21

    @property
    def needs(self) -> tuple[str, ...]:
        return ("score", "scored")

    def __call__(self, batch: Batch) -> Tensor:
        deviation = batch.layout.group_std(batch.score, batch.scored, unbiased=False)
        return deviation * deviation > self.least + 1e-12  # a square of a root: 3 of 10 right have 0.21 and a rounding

    def tier(self, batch: Batch) -> Tensor:
        return (~mixed_outcomes(batch)).to(torch.int64)

    def formula(self) -> str:
        return f"keep x if var_g(score) > {self.least:g}; resample, {self.limit}"


@dataclass(frozen=True)
class FreshTokens(Selection):
    """Only tokens written at this step take part, so that each is trained on at most once, at the step that wrote it.

    One that another selection leaves out then (`LeaveWindowEnd`) is old at the next step, and is never trained on.

    Source: T-PPO (arXiv 2506.15050), token filtering.
    """

    source = "T-PPO (arXiv 2506.15050), token filtering"
    level: ClassVar[str] = "token"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("fresh",)

    def __call__(self, batch: Batch) -> Tensor:
        fresh: Tensor = batch.fresh
        return fresh

    def formula(self) -> str:
        return "m_it = 0 unless token t was written at this step"


@dataclass(frozen=True)
class LeaveWindowEnd(Selection):
    """The last tokens of a response that goes on, whose advantages are the noisiest, are not trained on.

    It selects after the advantages are computed: left out before, the token in front of them would be taken for the
    end and get their noise.  last: how many tokens.
    Source: T-PPO (arXiv 2506.15050), token filtering.
    """

    source = "T-PPO (arXiv 2506.15050), token filtering"
    level: ClassVar[str] = "token"
    late: ClassVar[bool] = True
    last: int = 1

    def __post_init__(self) -> None:
        if self.last < 0:
            raise ConfigError(f"LeaveWindowEnd.last must not be negative, got {self.last}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("unfinished",)

    def __call__(self, batch: Batch) -> Tensor:
        layout = batch.layout
        left = layout.seq_lengths[layout.token_seq] - layout.token_position  # tokens from here to the end, inclusive
        return ~(layout.to_tokens(batch.unfinished) & (left <= self.last))

    def formula(self) -> str:
        return f"m_it = 0 for the last {self.last} of a response that goes on"


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
