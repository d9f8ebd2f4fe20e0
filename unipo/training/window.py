"""Responses written a window at a time, and kept from step to step until they end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.method import Method
from unipo.parts.source import Windowed
from unipo.rollout.engine import Request, Rollout
from unipo.training.prompts import Prompt
from unipo.training.source import Collected, Sampler, part_sums, prompt_seed, rollout_batch, score_groups

NO_MARK: dict[str, Any] = {"total": 0.0, "score": 0.0, "extracted": None, "parts": {}}


@dataclass(frozen=True)
class Draft:
    """A response so far. written: its tokens with the numbers of the weights that wrote them; version: [length]."""

    sample: int
    written: Rollout
    version: Tensor

    @staticmethod
    def empty(sample: int) -> Draft:
        """A response that has not been begun."""
        nothing = torch.zeros(0)
        return Draft(sample, Rollout(nothing.long(), nothing, nothing, True), nothing.long())

    def longer(self, piece: Rollout, version: int) -> Draft:
        """With a window's tokens added."""
        old = self.written
        tokens, logp, entropy = (torch.cat([getattr(old, k), getattr(piece, k)]) for k in ("tokens", "logp", "entropy"))
        stamped = torch.cat([self.version, torch.full((len(piece.tokens),), version, dtype=torch.int64)])
        return Draft(self.sample, Rollout(tokens, logp, entropy, piece.truncated), stamped)

    def goes_on(self, budget: int) -> bool:
        """Whether it was cut off before the budget's end."""
        return self.written.truncated and len(self.written.tokens) < budget


@dataclass(frozen=True)
class Slot:
    """A prompt in the pool and its unfinished responses."""

    prompt: Prompt
    drafts: tuple[Draft, ...]


class WindowSampler(Sampler):
    """A pool of responses in progress; see `unipo.parts.source.Windowed`."""

    def begin(self, method: Method) -> None:
        assert isinstance(method.source, Windowed)
        self.window = method.source.bound_to(self.sampling.max_tokens).window
        self.pool: list[Slot] = []

    def room(self, wanted: int) -> int:
        return max(0, wanted - len(self.pool))

    def state(self) -> Any:
        return self.pool

    def load(self, state: Any) -> None:
        self.pool = state

    def __call__(self, prompts: Sequence[Prompt], progress: Callable[[int], None] | None = None) -> Collected:
        start = time.perf_counter()
        empty = tuple(Draft.empty(j) for j in range(self.group))
        before = [*self.pool, *(Slot(p, empty) for p in prompts)]
        mine = self.ranks.share([len(s.drafts) for s in before])[self.ranks.rank]
        extended = self._extend([before[i] for i in mine], progress)
        generated = time.perf_counter()
        marks, events = self._score(extended)
        rewarded = time.perf_counter()
        now: list[Slot] = list(before)
        texts: list[list[str]] = [[] for _ in before]
        scores: list[list[dict[str, Any]]] = [[] for _ in before]
        totals = Counter[str]()
        for indices, slots, (rank_texts, rank_scores), rank_events in self.ranks.gather_objects(
            (mine, extended, marks, events)
        ):
            for place, i in enumerate(indices):
                now[i], texts[i], scores[i] = slots[place], rank_texts[place], rank_scores[place]
            totals.update(rank_events)
        budget = self.sampling.max_tokens
        open_ = [Slot(s.prompt, tuple(d for d in s.drafts if d.goes_on(budget))) for s in now]
        self.pool = [s for s in open_ if s.drafts]
        done = [
            m
            for group, s in zip(scores, now, strict=True)
            for m, d in zip(group, s.drafts, strict=True)
            if not d.goes_on(budget)
        ]
        fresh = sum(_tokens(a) - _tokens(b) for a, b in zip(now, before, strict=True))
        batch = self._batch(before, now, texts, scores)
        return Collected(batch, totals, part_sums(done), generated - start, rewarded - generated, fresh)

    def _extend(self, slots: Sequence[Slot], progress: Callable[[int], None] | None) -> list[Slot]:
        """Every response of these slots, longer by at most a window."""
        requests = [
            Request(
                s.prompt.ids,
                1,
                prompt_seed(self.seed, s.prompt.draw),
                d.written.tokens.tolist(),
                self.window,
                first=d.sample,
                images=s.prompt.pixels,
            )
            for s in slots
            for d in s.drafts
        ]
        pieces = iter(self.engine.generate(requests, self.sampling, progress) if requests else [])
        version = self.policy.updates
        return [replace(s, drafts=tuple(d.longer(next(pieces)[0], version) for d in s.drafts)) for s in slots]

    def _score(
        self, slots: Sequence[Slot]
    ) -> tuple[tuple[list[list[str]], list[list[dict[str, Any]]]], dict[str, int]]:
        """Texts and marks of every response; those that go on are not shown to the reward and have none."""
        budget = self.sampling.max_tokens
        ended = [[d.written for d in s.drafts if not d.goes_on(budget)] for s in slots]
        if not slots:
            return ([], []), {}
        judged = score_groups(self.policy, self.reward, [s.prompt for s in slots], ended) if any(ended) else None
        texts: list[list[str]] = []
        marks: list[list[dict[str, Any]]] = []
        for i, s in enumerate(slots):
            known = iter(zip(judged.texts[i], judged.scores[i], strict=True) if judged is not None else ())
            pairs = [self._open(d) if d.goes_on(budget) else next(known) for d in s.drafts]
            texts.append([text for text, _ in pairs])
            marks.append([mark for _, mark in pairs])
        return (texts, marks), {} if judged is None else judged.events

    def _open(self, draft: Draft) -> tuple[str, dict[str, Any]]:
        text = self.policy.tokenizer.decode(draft.written.tokens.tolist(), skip_special_tokens=False)
        return text, NO_MARK

    def _batch(
        self, before: Sequence[Slot], now: Sequence[Slot], texts: list[list[str]], scores: list[list[dict[str, Any]]]
    ) -> Batch:
        drafts = [d for s in now for d in s.drafts]
        groups = [[d.written for d in s.drafts] for s in now]
        batch = rollout_batch([s.prompt for s in now], groups, texts, scores, self.policy.updates)
        unfinished = torch.tensor([d.goes_on(self.sampling.max_tokens) for d in drafts], dtype=torch.bool)
        old = torch.tensor([len(d.written.tokens) for s in before for d in s.drafts])
        ids = [s.prompt.draw * 1_000_000 + d.sample for s in now for d in s.drafts]
        return batch.with_columns(
            None,
            version=torch.cat([d.version for d in drafts]),
            fresh=batch.layout.token_position >= batch.layout.to_tokens(old),
            unfinished=unfinished,
            truncated=batch.truncated & ~unfinished,
            sample_id=torch.tensor(ids, dtype=torch.int64),
        )


def _tokens(slot: Slot) -> int:
    return sum(len(d.written.tokens) for d in slot.drafts)
