"""Where sequences come from: sampled by the policy, demonstrated, or compared in pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unipo.errors import ConfigError
from unipo.parts.part import Part


@dataclass(frozen=True)
class Source(Part):
    """Base. epochs: passes over each batch; minibatches: optimiser steps per pass."""

    epochs: int = 1
    minibatches: int = 1
    online: ClassVar[bool] = False
    adds: ClassVar[tuple[str, ...]] = ("context", "tokens", "trainable", "sample_id", "prompt_id", "row", "answer")

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
    adds: ClassVar[tuple[str, ...]] = (
        *Source.adds,
        *("behaviour_logp", "behaviour_entropy", "taped", "version", "truncated", "text"),
        *("extracted", "score", "reward", "scored"),
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
