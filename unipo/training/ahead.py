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

    size: prompts per batch.  waiting: sampled ahead, oldest first; None for one in which no prompt qualified.
    sampled: batches sampled so far.  versions: of the weights (`Policy.updates`) before every batch trained so far.
    """

    source: Source
    size: int
    waiting: list[Collected | None] = field(default_factory=list)
    sampled: int = 0
    versions: list[int] = field(default_factory=list)

    def __call__(self, fresh: Callable[[], Collected | None], done: int, version: int) -> Collected | None:
        """fresh: samples a batch; done: batches that left the queue; version: of the present weights."""
        if "lag" in self.source.adds and version not in self.versions[-1:]:  # it stays where no prompt qualified
            self.versions.append(version)
        if not self.source.ahead:
            return self._with_lag(fresh())
        while not self.waiting or may_start(self.sampled * self.size, 0, done, self.size, self.source.ahead):
            self.waiting.append(fresh())
            self.sampled += 1
        return self._with_lag(self.waiting.pop(0))

    def _with_lag(self, collected: Collected | None) -> Collected | None:
        """Add column `lag` if the source promises it: how many batches were trained since the weights of each token."""
        if collected is None or "lag" not in self.source.adds:
            return collected
        wrote = collected.batch.version
        place = torch.searchsorted(torch.tensor(self.versions, device=wrote.device), wrote)
        return replace(collected, batch=collected.batch.with_columns(None, lag=len(self.versions) - 1 - place))

    # -- state -----------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: batches sampled and not yet trained on, and when the weights changed."""
        return {"waiting": self.waiting, "sampled": self.sampled, "versions": self.versions}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        self.waiting, self.sampled = list(state["waiting"]), state["sampled"]
        self.versions = list(state["versions"])
