"""Prompts for one update: drawn, sampled, filtered, refilled, and rewritten where the method says so."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from unipo.batch import Batch
from unipo.errors import DataError
from unipo.judge import known_rewards
from unipo.method import Method
from unipo.parts.selection import Refill
from unipo.training.prompts import Prompt, PromptStream
from unipo.training.source import Collected

Rewriter = Callable[[Batch, Sequence[Prompt]], "Rewritten"]


class Source(Protocol):
    """Where the batches come from: a `Sampler` or a `Reader`."""

    def room(self, wanted: int) -> int:
        """How many prompts to draw for a step of `wanted`."""
        ...

    def __call__(self, prompts: Sequence[Prompt], progress: Callable[[int], None] | None = None) -> Collected: ...


@dataclass(frozen=True)
class Rewritten:
    """Prompts made of others, each with the place of its original, its label, and what making them took."""

    prompts: tuple[Prompt, ...] = ()
    origins: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    events: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    sampled_tokens: int = 0


@dataclass
class Gathering:
    """What one step has collected so far. kept, dropped: batches; rounds: sampling rounds."""

    kept: list[Batch] = field(default_factory=list)
    dropped: list[tuple[Batch, list[int]]] = field(default_factory=list)
    sampled: list[Batch] = field(default_factory=list)
    parts: list[Collected] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    rounds: int = 0

    @property
    def prompts(self) -> int:
        """How many prompts have been kept."""
        return sum(b.layout.n_prompts for b in self.kept)


class Collector:
    """Makes the batch of a step.

    surplus: qualifying prompts that wait for the next step.  lost_tokens: sampled for the last step in which none did.
    """

    def __init__(self, method: Method, source: Source, stream: PromptStream, wanted: int, rewriter: Rewriter) -> None:
        self.method, self.source, self.stream, self.wanted = method, source, stream, wanted
        self.rewriter = rewriter
        self.surplus: Batch | None = None
        self.lost_tokens = 0
        self.filters = [s for s in method.selection if s.level == "prompt"]
        self.refill = next((s for s in self.filters if isinstance(s, Refill)), None)

    def __call__(
        self, states: Mapping[str, Any], progress: Callable[[int], None] | None = None
    ) -> tuple[Collected | None, Batch | None]:
        """(the step's batch, everything sampled for it if a curriculum learns from it).

        The first is None where no prompt qualified and the method says to go on.
        """
        curriculum = self.method.curriculum
        memory = {} if curriculum is None else states.get(curriculum.state_key or "", {})
        have = Gathering(kept=[] if self.surplus is None else [self.surplus])
        self.surplus = None
        while have.prompts < self.wanted:
            have.rounds += 1
            self._round(self.stream.take(self.source.room(self.wanted), memory), have, progress, states)
            if self.refill is None or (self.refill.rounds and have.rounds >= self.refill.rounds):
                break
        learns = curriculum is not None and curriculum.state_key is not None and have.sampled
        return self._merge(have), Batch.concat(have.sampled) if learns else None

    def _round(
        self,
        prompts: list[Prompt],
        have: Gathering,
        progress: Callable[[int], None] | None,
        states: Mapping[str, Any],
    ) -> None:
        """Sample these prompts and what is made of them; keep what the filters keep."""
        batch = self._sample(prompts, have, progress)
        have.sampled.append(batch)
        curriculum = self.method.curriculum
        if curriculum is not None and "variant" in curriculum.adds:
            batch = batch.with_columns(None, variant=[""] * batch.layout.n_prompts)
            made = self.rewriter(replace(batch, states=states), prompts)
            have.events.update(made.events)
            have.parts[-1] = replace(
                have.parts[-1],
                generation_seconds=have.parts[-1].generation_seconds + made.seconds,
                sampled_tokens=have.parts[-1].sampled_tokens + made.sampled_tokens,
            )
            if made.prompts:
                extra = self._sample(list(made.prompts), have, progress)
                extra = extra.with_columns(None, variant=list(made.labels))
                others = set(range(len(prompts))) - set(made.origins if curriculum.replaces else ())
                batch = Batch.concat([batch.take_prompts(sorted(others)), extra]) if others else extra
        for selection in self.filters:
            keep = selection(batch)
            have.events[f"dropped by {type(selection).__name__}"] += int((~keep).sum())
            if self.refill is not None and self.refill.when_dry == "fill" and not bool(keep.all()):
                rest = batch.take_prompts(~keep)
                have.dropped.append((rest, self.refill.tier(rest).tolist()))
            batch = batch.take_prompts(keep)
        if batch.layout.n_prompts:
            have.kept.append(batch)

    def _sample(self, prompts: list[Prompt], have: Gathering, progress: Callable[[int], None] | None) -> Batch:
        made = self.source(prompts, progress)
        have.parts.append(made)
        have.events.update(made.events)
        return made.batch

    def _merge(self, have: Gathering) -> Collected | None:
        refill, wanted = self.refill, self.wanted
        if refill is not None:
            have.events["sampling rounds"] += have.rounds
            if have.prompts < wanted:
                self._ran_dry(refill, have)
        if not have.kept:
            self.lost_tokens = sum(p.sampled_tokens for p in have.parts)
            return None
        batch = have.kept[0] if len(have.kept) == 1 else Batch.concat(have.kept)
        rewards = [r for made in have.parts for r in known_rewards(made.batch).tolist()]
        batch = replace(batch, sampled_reward=math.fsum(rewards) / len(rewards) if rewards else None)
        if refill is not None and have.prompts > wanted and refill.surplus != "use":
            if refill.surplus == "keep":
                self.surplus = batch.take_prompts(range(wanted, have.prompts))
            batch = batch.take_prompts(range(wanted))
        sums: dict[str, tuple[float, int]] = {}
        for name, (total, count) in (item for p in have.parts for item in p.parts.items()):
            before = sums.get(name, (0.0, 0))
            sums[name] = (before[0] + total, before[1] + count)
        return Collected(
            batch,
            have.events,
            sums,
            sum(p.generation_seconds for p in have.parts),
            sum(p.reward_seconds for p in have.parts),
            sum(p.sampled_tokens for p in have.parts),
        )

    def _ran_dry(self, refill: Refill, have: Gathering) -> None:
        """Too few prompts qualified in the rounds there are: go on, fill up, or stop, as the method says."""
        have.events["sampling ran dry"] += 1
        if refill.when_dry == "raise":
            raise DataError(
                f"after {have.rounds} rounds only {have.prompts} of {self.wanted} prompts were kept by "
                f"{type(refill).__name__} ({refill.formula()}). Use other prompts, or when_dry=train"
            )
        if refill.when_dry != "fill":
            return
        ranked = sorted((tier, b, p) for b, (_, tiers) in enumerate(have.dropped) for p, tier in enumerate(tiers))
        chosen = ranked[: self.wanted - have.prompts]
        for b, (batch, _) in enumerate(have.dropped):
            mine = sorted(p for _, at, p in chosen if at == b)
            if mine:
                have.kept.append(batch.take_prompts(mine))
        have.events["filled with dropped prompts"] += len(chosen)
