"""Where sequences come from: sampled by the policy, demonstrated, or compared in pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from unipo.errors import ConfigError
from unipo.parts.part import Part


@dataclass(frozen=True)
class Source(Part):
    """Base. epochs: passes over each batch; minibatches: optimiser steps per pass.

    online: the policy samples.  reads_responses: those that came with the data are learnt from.
    """

    epochs: int = 1
    minibatches: int = 1
    online: ClassVar[bool] = False
    reads_responses: ClassVar[bool] = True
    adds: ClassVar[tuple[str, ...]] = (
        "context",
        "tokens",
        "trainable",
        "sample_id",
        "prompt_id",
        "prompt",
        "row",
        "answer",
    )

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.minibatches < 1:
            raise ConfigError(f"{type(self).__name__}: epochs and minibatches must be at least 1, got {self}")

    @property
    def group(self) -> int:
        """Sequences per prompt."""
        return 1

    @property
    def updates(self) -> int:
        """Optimiser steps per batch."""
        return self.epochs * self.minibatches

    @property
    def ahead(self) -> int:
        """Batches that may be sampled before the ones in front of them have been trained on."""
        return 0

    def formula(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class OnPolicy(Source):
    """The policy samples `group_size` responses per prompt, which are then scored."""

    group_size: int = 8
    online: ClassVar[bool] = True
    reads_responses: ClassVar[bool] = False
    adds: ClassVar[tuple[str, ...]] = (
        *Source.adds,
        *("behaviour_logp", "behaviour_entropy", "taped", "version", "truncated", "text"),
        *("extracted", "score", "reward", "scored", "reward_parts"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size < 1:
            raise ConfigError(f"group_size must be at least 1, got {self.group_size}")

    @property
    def group(self) -> int:
        return self.group_size

    def formula(self) -> str:
        return f"y_1..y_{self.group_size} ~ pi_old(.|x), {self.updates} update(s) per batch"


@dataclass(frozen=True)
class Solved(OnPolicy):
    """Sampled responses; the response that came with the prompt's data row is there to be shown, not to be learnt."""

    reads_responses: ClassVar[bool] = True
    adds: ClassVar[tuple[str, ...]] = (*OnPolicy.adds, "solution")

    def formula(self) -> str:
        return f"{super().formula()}; a solution of x ~ data"


@dataclass(frozen=True)
class Mixed(OnPolicy):
    """Sampled responses, and beside them the one that came with the prompt's data row, where there is one.

    The demonstration is the last row of its group.  It is marked in `demonstration` and has no score, so it stays
    out of rewards, group statistics and advantages (its own is 0), but not out of the loss: its `mask` is set.  Its
    `behaviour_logp` is 0: who wrote it is unknown, and a ratio against it has the denominator 1.
    Source: HPT (arXiv 2509.04419); the denominator 1 as LUFFY (arXiv 2504.14945).
    """

    source = "HPT (arXiv 2509.04419)"
    reads_responses: ClassVar[bool] = True
    adds: ClassVar[tuple[str, ...]] = (*OnPolicy.adds, "demonstration")

    def formula(self) -> str:
        return f"{super().formula()}; y* ~ data"


@dataclass(frozen=True)
class Windowed(OnPolicy):
    """Responses are written a window at a time: every step extends each unfinished one by at most `window` tokens.

    A response leaves when it ends or has used up the token budget, and a prompt whose whole group has left makes room
    for a new one.  Old tokens keep the log-probs of the weights that wrote them; `fresh` marks this step's.
    window: tokens; 0 is a third of the token budget, as in the paper (8k of 24k).
    Source: T-PPO (arXiv 2506.15050), successive batching.
    """

    window: int = 0
    adds: ClassVar[tuple[str, ...]] = (*OnPolicy.adds, "unfinished", "fresh")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 0:
            raise ConfigError(f"Windowed.window must not be negative, got {self.window}")

    def bound_to(self, max_tokens: int) -> Self:
        return self if self.window else replace(self, window=-(-max_tokens // 3))

    def formula(self) -> str:
        width = str(self.window) if self.window else "max_tokens/3"
        return f"y_1..y_{self.group_size} ~ pi(.|x), at most {width} tokens a step, {self.updates} update(s) per batch"


@dataclass(frozen=True)
class SegmentTree(Source):
    """The policy samples a tree: at every node `branching[depth]` segments of `segment` tokens, to the end at the last.

    A node where a response ends is a leaf, worth its reward (`truncated_reward` if the token budget ended it); an inner
    node is worth the mean of its children.  Each edge is an example: the path to it is its prompt, the segment its
    response, the value at its end its reward.  Edges whose value equals their parent's are dropped.  At most `edges`
    random edges of a prompt are used at a step; what is left waits, and expires after `keep` steps.
    Source: SPO (arXiv 2505.23564), SPO-tree; AIFrameResearch/SPO.
    """

    branching: tuple[int, ...] = (6, 6, 6)
    segment: int = 600
    edges: int = 32
    keep: int = 8
    truncated_reward: float = 0.0
    online: ClassVar[bool] = True
    reads_responses: ClassVar[bool] = False
    adds: ClassVar[tuple[str, ...]] = (*OnPolicy.adds, "parent_reward", "sibling_std")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.branching or min(self.branching) < 1 or min(self.segment, self.edges, self.keep) < 1:
            raise ConfigError(f"SegmentTree: branching, segment, edges and keep must be at least 1, got {self}")

    @property
    def group(self) -> int:
        return max(self.branching)

    def formula(self) -> str:
        shape = "-".join(map(str, self.branching))
        return (
            f"tree {shape} of segments of {self.segment} tokens ~ pi_old; at most {self.edges} edges per prompt and "
            f"step, {self.updates} update(s) per batch"
        )


@dataclass(frozen=True)
class Demonstrations(Source):
    """Responses that came with the data, one per prompt."""

    def formula(self) -> str:
        return "(x, y) ~ data"


@dataclass(frozen=True)
class Preferences(Source):
    """Responses that came with the data, several per prompt, ranked by the column `preference`."""

    adds: ClassVar[tuple[str, ...]] = (*Source.adds, "preference")

    @property
    def group(self) -> int:
        return 2

    def formula(self) -> str:
        return "(x, y_w, y_l) ~ data"
