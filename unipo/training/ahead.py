"""Batches that are sampled before the ones in front of them have been trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from unipo.parts.asynchronous import may_start
from unipo.parts.source import Source
from unipo.training.source import Collected


@dataclass
class Queue:
    """Gives every step its batch: a fresh one, or the oldest of those that an asynchronous source has sampled ahead.

    size: prompts per batch.  waiting: sampled ahead, oldest first; None for one in which no prompt qualified.
    sampled: batches sampled so far.
    """

    source: Source
    size: int
    waiting: list[Collected | None] = field(default_factory=list)
    sampled: int = 0

    def __call__(self, fresh: Callable[[], Collected | None], trained: int, updates: int) -> Collected | None:
        """fresh: samples a batch; trained: batches trained so far; updates: of the present weights."""
        if not self.source.ahead:
            return self._with_lag(fresh(), updates)
        while not self.waiting or may_start(self.sampled * self.size, 0, trained, self.size, self.source.ahead):
            self.waiting.append(fresh())
            self.sampled += 1
        return self._with_lag(self.waiting.pop(0), updates)

    def _with_lag(self, collected: Collected | None, updates: int) -> Collected | None:
        """Add column `lag` if the source promises it: how many batches were trained since the sampling weights."""
        if collected is None or "lag" not in self.source.adds:
            return collected
        lag = (updates - collected.batch.version + self.source.updates - 1) // self.source.updates
        return replace(collected, batch=collected.batch.with_columns(None, lag=lag))

    # -- state -----------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: batches sampled and not yet trained on."""
        return {"waiting": self.waiting, "sampled": self.sampled}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        self.waiting, self.sampled = list(state["waiting"]), state["sampled"]
