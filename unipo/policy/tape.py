"""What sampling computed of every token, kept for the update that follows with the same weights.

While a response is written, every layer is forwarded for every one of its tokens, and the weights do not change
until the update.  The update's forward pass would compute the same numbers again.  So the decoder keeps them, and
the hand-written layer (`unipo.policy.layer`) and the head (`unipo.policy.head`) take them over: the update is left
with its backward pass.  The gradient is that of the plain pass up to float noise.

Rows of the tape are numbered as they are forwarded.  A *head row* is a row whose hidden state predicted a token; the
batch column `taped` holds it for every token, and from it everything else follows: the row of a token is the one that
predicted the token after it, and a context ends at the row that predicted a first token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.policy.head import BUDGET_BYTES, HeadRows
from unipo.policy.packing import Plan

BLOCK_ROWS = 2048


@dataclass(frozen=True)
class LayerRows:
    """One layer's kept values over the packed row, each [N, ...] (columns of one block, so not contiguous).

    qkv: the projections, heads interleaved, before norm and rotation.  attended, lse: attention's output and its
    log-sum-exps.  middle: after attention and its residual.  gate_up: both projections side by side.  out: [N, hidden].
    """

    qkv: Tensor
    attended: Tensor
    lse: Tensor
    middle: Tensor
    gate_up: Tensor
    out: Tensor


class _Rows:
    """Rows of one width, appended in large blocks: small pieces would leave holes in memory when they are freed."""

    def __init__(self, width: int, dtype: torch.dtype, block: int = BLOCK_ROWS) -> None:
        self.width, self.dtype, self.block, self.used = width, dtype, block, 0
        self.blocks: list[Tensor] = []

    def room(self, n: int) -> Tensor:
        """[n, width] of fresh memory for the next n rows (n may exceed a block)."""
        if not self.blocks or self.used + n > len(self.blocks[-1]):
            if self.blocks:
                self.blocks[-1] = self.blocks[-1][: self.used]
            with torch.inference_mode(False):  # autograd may not keep what inference mode has made
                self.blocks.append(torch.empty(max(n, self.block), self.width, dtype=self.dtype))
            self.used = 0
        self.used += n
        return self.blocks[-1][self.used - n : self.used]

    def take(self, index: Tensor) -> Tensor:
        held = [*self.blocks[:-1], self.blocks[-1][: self.used]]
        return (held[0] if len(held) == 1 else torch.cat(held)).index_select(0, index)


class _LayerTape:
    """One layer's rows. The parts of one dtype lie side by side and are written by one copy."""

    def __init__(self) -> None:
        self.stores: dict[torch.dtype, _Rows] = {}
        self.places: list[tuple[torch.dtype, int, int]] = []

    def keep(self, parts: tuple[Tensor, ...]) -> int:
        """Append the same rows of every part, in the order of `LayerRows`. Returns bytes."""
        if not self.stores:
            width = {part.dtype: 0 for part in parts}
            for part in parts:
                self.places.append((part.dtype, width[part.dtype], part.shape[1]))
                width[part.dtype] += part.shape[1]
            self.stores = {dtype: _Rows(n, dtype) for dtype, n in width.items()}
        count, n = 0, len(parts[0])
        for dtype, store in self.stores.items():
            room = store.room(n)
            torch.cat(parts if len(self.stores) == 1 else [p for p in parts if p.dtype == dtype], 1, out=room)
            count += room.nbytes
        return count

    def take(self, index: Tensor) -> LayerRows:
        rows = {dtype: store.take(index) for dtype, store in self.stores.items()}
        return LayerRows(*(rows[dtype][:, at : at + width] for dtype, at, width in self.places))


class Tape:
    """The record of one sampling phase. version: `Policy.updates` while it was written; limit: bytes it may hold.

    Beyond the limit everything is dropped and the update computes its forward pass itself; probabilities have a
    limit of their own and are then computed again in the backward.
    """

    def __init__(self, layers: int, version: int, limit: int, p_limit: int = BUDGET_BYTES) -> None:
        self.version, self.limit, self.p_limit = version, limit, p_limit
        self.rows = self.heads = self.bytes = 0
        self.dropped = False
        self._layers = [_LayerTape() for _ in range(layers)]
        self._source: list[Tensor] = []
        self._logp: list[Tensor] = []
        self._entropy: list[Tensor] = []
        self._p: _Rows | None = None
        self._keeps_p = True

    # -- writing, by the decoder and the engine --------------------------------------------------
    def keep(self, layer: int, *parts: Tensor) -> None:
        """Some rows' values in one layer, [n, width] each, in the order of `LayerRows`; every layer gets the same rows."""
        if self.dropped:
            return
        self.bytes += self._layers[layer].keep(parts)
        if self.bytes > self.limit:
            self.drop()

    def advance(self, rows: int) -> int:
        """These rows have passed all layers. Returns the number of the first."""
        self.rows += rows
        return self.rows - rows

    def room_for_p(self, like: Tensor) -> Tensor | None:
        """Where the probabilities of the next head rows go. like: [n, V]; None if they are not kept."""
        if not self._keeps_p or self.dropped:
            return None
        most = self.p_limit // (like.shape[1] * like.element_size())
        if self.heads + len(like) > most:
            self._p, self._keeps_p = None, False
            return None
        if self._p is None:
            self._p = _Rows(like.shape[1], like.dtype, most)
        return self._p.room(len(like))

    def keep_head(self, source: Tensor, logp: Tensor, entropy: Tensor) -> int:
        """One choice per head row. source: [n] the row whose hidden state made it. Returns the first head row."""
        self.heads += len(source)
        if not self.dropped:
            self._source.append(source)
            self._logp.append(logp)
            self._entropy.append(entropy)
        return self.heads - len(source)

    def drop(self) -> None:
        """Forget everything; the tape then covers no batch."""
        self.dropped = True
        self._layers, self._source, self._logp, self._entropy, self._p = [], [], [], [], None

    # -- reading, by the policy ------------------------------------------------------------------
    def reading(self, batch: Batch, plan: Plan, version: int, final: bool) -> Reading | None:
        """The tape's values for a packed row, or None if some are missing or of other weights.

        final: nothing else will be read, so each layer is let go as soon as it has been handed out.
        """
        if self.dropped or version != self.version or not self._source or not batch.has("taped"):
            return None
        layout, taped = batch.layout, batch.taped
        first = layout.seq_starts[layout.group_starts]
        if bool((layout.seq_lengths[layout.group_starts] == 0).any()):
            return None
        heads = taped[plan.required]
        needed = torch.cat([taped[first], taped[plan.forwarded + 1]])
        if bool((heads < 0).any()) or bool((needed < 0).any()):
            return None
        source = torch.cat(self._source)
        last = source[taped[first]]
        within = torch.arange(layout.n_context) - torch.repeat_interleave(layout.context_starts, layout.context_lengths)
        start = torch.repeat_interleave(last - layout.context_lengths + 1, layout.context_lengths)
        rows = torch.cat([start + within, source[taped[plan.forwarded + 1]]])
        return Reading(self, rows, heads, final)


@dataclass(frozen=True)
class Reading:
    """A tape read for one packed row. rows: [N] tape rows; heads: [R] head rows."""

    tape: Tape
    rows: Tensor
    heads: Tensor
    final: bool

    @cached_property
    def order(self) -> Tensor:
        """[R] puts the required rows into the tape's order, in which `head` returns them."""
        return self.heads.argsort()

    def ordered(self, plan: Plan) -> Plan:
        """The plan read from this tape: its required tokens stand in the tape's order."""
        at = self.order
        mine = replace(plan, read=plan.read[at], target=plan.target[at], required=plan.required[at])
        mine.memo["tape"] = self
        return mine

    def layer(self, number: int) -> LayerRows:
        """What the tape holds of one layer for these rows; the last reading frees it."""
        rows = self.tape._layers[number].take(self.rows)
        if self.final:
            self.tape._layers[number] = _LayerTape()
        return rows

    def head(self) -> HeadRows:
        """The required rows in the tape's order. If all rows are asked for and this is the last time, their
        probabilities are the tape's own memory: they are the largest thing on it and are not held twice."""
        tape, at = self.tape, self.heads[self.order]
        logp, entropy = (torch.cat(x).index_select(0, at) for x in (tape._logp, tape._entropy))
        store = tape._p
        if store is None:
            return HeadRows(logp, entropy, None)
        whole = self.final and len(at) == store.used == tape.heads
        p = store.blocks[0][: store.used] if whole else store.take(at)
        if self.final:
            tape._p = None
        return HeadRows(logp, entropy, p)
