"""The order in which prompts come, reproducible from two numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unipo.errors import DataError
from unipo.tasks.task import Example


@dataclass(frozen=True)
class Prompt:
    """An example ready for the engine. ids: its prompt's tokens; responses: token ids of its own responses.

    draw: how many prompts were drawn before this one in the run; it seeds the sampling.
    """

    example: Example
    ids: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...] = ()
    draw: int = 0


class PromptStream:
    """Endless passes over the data, each in its own shuffled order. `drawn` is the whole state."""

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        if not prompts:
            raise DataError("there are no prompts to train on")
        self.prompts = prompts
        self.seed = seed
        self.drawn = 0
        self._order: tuple[int, list[int]] | None = None

    def take(self, n: int) -> list[Prompt]:
        """The next n prompts."""
        return [self._next() for _ in range(n)]

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return self.drawn / len(self.prompts)

    def _next(self) -> Prompt:
        epoch, at = divmod(self.drawn, len(self.prompts))
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = (epoch, torch.randperm(len(self.prompts), generator=generator).tolist())
        prompt = self.prompts[self._order[1][at]]
        self.drawn += 1
        return Prompt(prompt.example, prompt.ids, prompt.responses, self.drawn - 1)
