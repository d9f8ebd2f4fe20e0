"""The responses being written, one row each: what was sampled so far, and who is finished."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unipo.rollout.engine import Rollout, Sampling
from unipo.rollout.sampling import uniform


@dataclass(frozen=True)
class Draft:
    """Which response a row writes. request, sample: its place in the results; seed: of its random choices.

    room: tokens it may write.  prefix: tokens of the response that are there already."""

    request: int
    sample: int
    seed: int
    room: int
    prefix: tuple[int, ...] = ()


@dataclass
class Rows:
    """Rows that are sampled together.

    token: [R] last token.  tokens, logp, entropy: [R, room] written so far.  seed: [R].  count: tokens that each row
    has written, finished rows included (they run along until they are dropped).  budget: most that any may write.
    ended: None while being written, else (length, truncated).  taped: [R, room] tape row that predicted each token, if a
    tape is kept.  Buffers and the table of random numbers double as they fill.
    """

    drafts: list[Draft]
    budget: int
    token: Tensor
    tokens: Tensor
    logp: Tensor
    entropy: Tensor
    seed: Tensor
    count: list[int]
    ended: list[tuple[int, bool] | None]
    greedy: bool
    alive: int = 0
    _reported: set[int] = field(default_factory=set)
    taped: Tensor | None = None
    _table: Tensor | None = None
    _written: Tensor | None = None
    _least: int = field(init=False)

    def __post_init__(self) -> None:
        self._least = min(d.room for d in self.drafts)

    @staticmethod
    def start(
        drafts: list[Draft], sampling: Sampling, device: torch.device, room: int = 64, taped: bool = False
    ) -> Rows:
        """Rows for drafts that are about to be written."""
        n, budget = len(drafts), max(d.room for d in drafts)
        room = min(room, budget)
        seed = torch.tensor([d.seed for d in drafts], dtype=torch.int64, device=device)
        tokens = torch.zeros(n, room, dtype=torch.int64, device=device)
        logp, entropy = torch.zeros(2, n, room, device=device).unbind()
        greedy = sampling.temperature == 0
        rows = Rows(drafts, budget, tokens[:, 0], tokens, logp, entropy, seed, [0] * n, [None] * n, greedy, n)
        rows.taped = torch.zeros_like(tokens) if taped else None
        return rows

    @property
    def exhausted(self) -> bool:
        """Has some row, finished or not, used up its room, so that it cannot run along any further?"""
        if max(self.count) < self._least:
            return False
        return any(n >= d.room for n, d in zip(self.count, self.drafts, strict=True))

    # -- sampling --------------------------------------------------------------------------------
    def chance(self) -> Tensor:
        """[R] float64 in [0, 1): the random number of each row's next choice."""
        if self.greedy:
            return self.seed.double()
        most = max(self.count)
        if self._table is None or self._table.shape[1] <= most:
            positions = torch.arange(max(self.tokens.shape[1], most + 1), device=self.seed.device)
            begun = torch.tensor([len(d.prefix) for d in self.drafts], device=self.seed.device)
            self._table = uniform(self.seed[:, None], begun[:, None] + positions[None, :])
        where = self._column()
        if isinstance(where, int):
            return self._table[:, where]
        return self._table.gather(1, where[:, None]).squeeze(1)

    def _column(self) -> int | Tensor:
        """Where the next token goes: one column for all rows, or [R]."""
        if self._written is None:
            if min(self.count) == max(self.count):
                return self.count[0]
            self._written = torch.tensor(self.count, device=self.seed.device)
        return self._written

    def append(
        self, token: Tensor, logp: Tensor, entropy: Tensor, end_ids: Tensor, taped: Tensor | None = None
    ) -> None:
        """Take over one choice per row. token, taped: [R] int64; logp, entropy: [R]; end_ids: [E]."""
        most = max(self.count)
        if self.tokens.shape[1] <= most:
            self._grow(most + 1)
        where = self._column()
        self.token = token
        written = [(self.tokens, token), (self.logp, logp), (self.entropy, entropy)]
        if self.taped is not None and taped is not None:
            written.append((self.taped, taped))
        for buffer, value in written:
            if isinstance(where, int):
                buffer[:, where] = value
            else:
                buffer.scatter_(1, where[:, None], value[:, None].to(buffer.dtype))
        if self._written is not None:
            self._written = self._written + 1
        self.count = [n + 1 for n in self.count]
        if len(end_ids):
            at_end = (token[:, None] == end_ids.to(token.device)).any(1)
            for i in at_end.nonzero().flatten().tolist():
                self.stop(i)
        if most + 1 >= self._least:
            for i, n in enumerate(self.count):
                if n >= self.drafts[i].room:
                    self._finish(i, truncated=True)

    def _grow(self, width: int) -> None:
        room = min(self.budget, max(width, 2 * self.tokens.shape[1]))
        spare = max(room, width) - self.tokens.shape[1]
        pad = torch.nn.functional.pad
        self.tokens, self.logp, self.entropy = (pad(x, (0, spare)) for x in (self.tokens, self.logp, self.entropy))
        self.taped = None if self.taped is None else pad(self.taped, (0, spare))

    # -- finishing -------------------------------------------------------------------------------
    def stop(self, i: int) -> None:
        """Row i has just written its last token."""
        self._finish(i, truncated=False)

    def _finish(self, i: int, truncated: bool) -> None:
        if self.ended[i] is None:
            self.ended[i] = (self.count[i], truncated)
            self.alive -= 1
        elif self.ended[i] == (self.count[i], True) and not truncated:
            self.ended[i] = (self.count[i], False)  # a stop text completed by the last token of the budget

    def tails(self, reach: int) -> Iterator[tuple[int, list[int]]]:
        """(row, its last tokens) for every row that may have just been stopped by a text."""
        for i, n in enumerate(self.count):
            if self.ended[i] is None or self.ended[i] == (n, True):
                own = self.tokens[i, max(0, n - reach) : n].tolist()
                yield i, [*self.drafts[i].prefix[max(0, len(self.drafts[i].prefix) - (reach - len(own))) :], *own]

    def harvest(self) -> Iterator[tuple[Draft, Rollout]]:
        """Every response that finished since the last call."""
        for i, end in enumerate(self.ended):
            if end is None or i in self._reported:
                continue
            self._reported.add(i)
            length, truncated = end
            tokens, logp, entropy = (x[i, :length].to("cpu", copy=True) for x in (self.tokens, self.logp, self.entropy))
            taped = None if self.taped is None else self.taped[i, :length].to("cpu", copy=True)
            yield self.drafts[i], Rollout(tokens, logp, entropy, truncated, taped)

    # -- rearranging -----------------------------------------------------------------------------
    def alive_index(self) -> Tensor:
        """[K] rows that are still being written, ascending."""
        alive = [i for i, end in enumerate(self.ended) if end is None]
        return torch.tensor(alive, dtype=torch.int64, device=self.seed.device)

    def keep(self, index: Tensor) -> Rows:
        """Only these rows, all of them unfinished."""
        rows = index.tolist()
        return Rows(
            [self.drafts[i] for i in rows],
            self.budget,
            self.token[index],
            self.tokens[index],
            self.logp[index],
            self.entropy[index],
            self.seed[index],
            [self.count[i] for i in rows],
            [None] * len(rows),
            self.greedy,
            len(rows),
            taped=None if self.taped is None else self.taped[index],
        )

    def join(self, other: Rows) -> Rows:
        """These rows, then those."""
        width = max(self.tokens.shape[1], other.tokens.shape[1])
        for rows in (self, other):
            if rows.tokens.shape[1] < width:
                rows._grow(width)
        return Rows(
            self.drafts + other.drafts,
            max(self.budget, other.budget),
            torch.cat([self.token, other.token]),
            torch.cat([self.tokens, other.tokens]),
            torch.cat([self.logp, other.logp]),
            torch.cat([self.entropy, other.entropy]),
            torch.cat([self.seed, other.seed]),
            self.count + other.count,
            self.ended + other.ended,
            self.greedy,
            self.alive + other.alive,
            self._reported | {len(self.drafts) + i for i in other._reported},
            taped=None if self.taped is None or other.taped is None else torch.cat([self.taped, other.taped]),
        )
