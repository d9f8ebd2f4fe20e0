"""Batches that are sampled before the ones in front of them have been trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from unipo.parts.asynchronous import may_start
from unipo.parts.source import Source
from unipo.training.source import Collected


@dataclass
class Queue:
    """Gives every step its batch: a fresh one, or the oldest of those that an asynchronous source has sampled ahead.

    size: prompts per batch.  waiting: sampled ahead, oldest first, with the number of batches that were trained before
    it was sampled; None for one in which no prompt qualified.  sampled: batches sampled so far.
    """

    source: Source
    size: int
    waiting: list[tuple[Collected | None, int]] = field(default_factory=list)
    sampled: int = 0

    def __call__(self, fresh: Callable[[], Collected | None], trained: int) -> Collected | None:
        """fresh: samples a batch; trained: batches trained so far."""
        if not self.source.ahead:
            return self._with_lag(fresh(), 0)
        while not self.waiting or may_start(self.sampled * self.size, 0, trained, self.size, self.source.ahead):
            self.waiting.append((fresh(), trained))
            self.sampled += 1
        collected, before = self.waiting.pop(0)
        return self._with_lag(collected, trained - before)

    def _with_lag(self, collected: Collected | None, lag: int) -> Collected | None:
        """Add column `lag` if the source promises it: how many batches were trained since the sampling weights."""
        if collected is None or "lag" not in self.source.adds:
            return collected
        column = torch.full_like(collected.batch.version, lag)
        return replace(collected, batch=collected.batch.with_columns(None, lag=column))

    # -- state -----------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: batches sampled and not yet trained on."""
        return {"waiting": self.waiting, "sampled": self.sampled}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        self.waiting, self.sampled = list(state["waiting"]), state["sampled"]
