"""The order in which prompts come, reproducible from the seed and a few counts."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from unipo.chance import wrapped
from unipo.errors import ConfigError, DataError
from unipo.parts.curriculum import Curriculum
from unipo.tasks.pictures import Pictures, marked
from unipo.tasks.task import Example, Message


@dataclass(frozen=True)
class Prompt:
    """An example ready for the engine. ids: its prompt's tokens; responses: token ids of its own responses.

    draw: how many prompts were drawn before this one in the run; it seeds the sampling.
    steps: (id, probability) pairs of each step of a response whose steps are distributions over tokens.
    images: where the data has images; also for prompts without any there, so that all have the same columns.
    """

    example: Example
    ids: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...] = ()
    draw: int = 0
    steps: tuple[tuple[tuple[int, float], ...], ...] = ()
    images: Pictures | None = None

    @property
    def said(self) -> str | Sequence[Message]:
        """The prompt in words, with a mark for each of its images."""
        images = self.example.images
        return marked(self.example.prompt, len(images)) if images else self.example.prompt

    @property
    def pixels(self) -> Tensor | None:
        """[n, C, H, W] of the prompt's images, made when asked for; None where the data has none."""
        return None if self.images is None else self.images.pixels(self.draw)


class PromptStream:
    """Endless passes over the data, each in its own shuffled order; with a curriculum, over each of its pools.

    The state is how many prompts were taken of every pool, and how many draws were given out, which seed sampling.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, curriculum: Curriculum | None = None) -> None:
        if not prompts:
            raise DataError("there are no prompts to train on")
        self.prompts, self.seed = prompts, seed
        self.curriculum = curriculum or Curriculum()
        self.pools: dict[str, list[int]] = {}
        for place, p in enumerate(prompts):
            self.pools.setdefault(self.curriculum.pool(p.example.row, p.example.id), []).append(place)
        self.pools = dict(sorted(self.pools.items()))
        self.taken = dict.fromkeys(self.pools, 0)
        self.drawn = 0
        self._orders: dict[str, tuple[int, list[int]]] = {}

    def take(self, n: int, memory: Mapping[str, Any] | None = None) -> list[Prompt]:
        """The next n prompts. memory: what the curriculum remembers."""
        if len(self.pools) == 1:
            return [self._next(pool) for pool in self.pools for _ in range(n)]
        draw = torch.Generator().manual_seed(wrapped(self.seed * 1_000_003 + 7919 * self.drawn + 1))
        sizes = {pool: len(places) for pool, places in self.pools.items()}
        counts = self.curriculum.counts(memory or {}, sizes, n, draw)
        if len(counts) != len(sizes) or sum(counts) != n or min(counts) < 0:
            raise ConfigError(
                f"{type(self.curriculum).__name__}.counts gave {counts} for {n} prompts of {len(sizes)} pools"
            )
        order = [pool for pool, count in zip(sizes, counts, strict=True) for _ in range(count)]
        return [self._next(order[i]) for i in torch.randperm(n, generator=draw).tolist()]

    def reserve(self, n: int) -> range:
        """n draws for prompts that are made, not taken."""
        self.drawn += n
        return range(self.drawn - n, self.drawn)

    @cached_property
    def digest(self) -> str:
        """All that is learnt from, in short: a run goes on only where it is the same."""
        found = hashlib.sha256()
        for p in self.prompts:
            preferences = [r.preference for r in p.example.responses]
            # What is no plain value, as an opened image, counts as its type: objects look different in every process.
            rest = json.dumps([p.example.images, dict(p.example.row)], default=lambda value: type(value).__name__)
            found.update(repr((p.ids, p.example.answer, p.responses, preferences, p.steps, rest)).encode())
        return found.hexdigest()[:16]

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return sum(self.taken.values()) / len(self.prompts)

    def _next(self, pool: str) -> Prompt:
        places = self.pools[pool]
        epoch, at = divmod(self.taken[pool], len(places))
        held = self._orders.get(pool)
        if held is None or held[0] != epoch:
            # Pools of one curriculum are shuffled apart; the only pool of none is called "" and adds nothing.
            own = zlib.crc32(pool.encode()) if pool else 0
            generator = torch.Generator().manual_seed(wrapped(self.seed * 1_000_003 + epoch + (own << 20)))
            held = (epoch, torch.randperm(len(places), generator=generator).tolist())
            self._orders[pool] = held
        prompt = self.prompts[places[held[1][at]]]
        self.taken[pool] += 1
        return replace(prompt, draw=self.reserve(1)[0])

    # -- state -----------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the stream."""
        return {"drawn": self.drawn, "taken": dict(self.taken)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`. Raises DataError where the pools are others."""
        if list(state["taken"]) != list(self.taken):
            raise DataError(
                f"the run was started with the prompt pools {list(state['taken'])}, now there are {list(self.taken)}: "
                "the data or the curriculum changed, so it cannot be resumed"
            )
        self.drawn, self.taken = state["drawn"], dict(state["taken"])
