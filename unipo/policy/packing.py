"""The packed row: every prompt once, then every response, with nothing in between.

    row = [context_1 ... context_P | response_1 ... response_S]
Positions restart: a context runs 0..C-1 and each of its responses C, C+1, ...  A response token is predicted by
the position before it (the context's last for the first token), so a sequence is forwarded only up to the
position before its last required token: what nobody reads is not computed.

Source of the idea: Prefix Grouper (arXiv 2506.05433).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import DataError
from unipo.layout import Layout


@dataclass(frozen=True, eq=False)
class Tile:
    """Spans of the row laid out as a rectangle: [n, width] row numbers, and which cells are real.

    exact: all spans have the same length and follow each other, so the rectangle is a view of `start`..."""

    index: Tensor
    lengths: Tensor
    start: int
    exact: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the tile."""
        return self.index.shape[0], self.index.shape[1]

    @cached_property
    def real(self) -> Tensor:
        """[n, width] bool."""
        return torch.arange(self.shape[1], device=self.index.device)[None, :] < self.lengths[:, None]

    def take(self, rows: Tensor) -> Tensor:
        """rows: [N, ...]. Returns [n, width, ...]; padding cells repeat some row."""
        n, width = self.shape
        if self.exact:
            return rows[self.start : self.start + n * width].view(n, width, *rows.shape[1:])
        return rows.index_select(0, self.index.flatten()).view(n, width, *rows.shape[1:])

    def put(self, rows: Tensor, tile: Tensor, add: bool = False) -> None:
        """Write (or add) the real cells of tile [n, width, ...] into rows [N, ...]."""
        n, width = self.shape
        if self.exact:
            target = rows[self.start : self.start + n * width].view(n, width, *rows.shape[1:])
            target.add_(tile) if add else target.copy_(tile)
            return
        where = self.index[self.real]
        rows.index_add_(0, where, tile[self.real]) if add else rows.index_copy_(0, where, tile[self.real])


def tile_of(starts: Tensor, lengths: Tensor) -> Tile:
    """The rectangle over spans [start, start + length) of the row."""
    width = int(lengths.max()) if len(lengths) else 0
    offset = torch.arange(width, device=starts.device)
    index = starts[:, None] + torch.minimum(offset[None, :], (lengths[:, None] - 1).clamp(min=0))
    same = bool((lengths == width).all())
    adjacent = same and bool((starts.diff() == width).all())
    return Tile(index, lengths, int(starts[0]) if len(starts) else 0, adjacent)


@dataclass(frozen=True, eq=False)
class CrossTile:
    """Response positions of some prompts against those prompts' contexts."""

    queries: Tile
    keys: Tile


@dataclass(frozen=True, eq=False)
class Plan:
    """Where everything stands in the packed row.

    ids, positions: [N].  contexts, responses: rectangles for causal self-attention; cross: responses over their
    contexts.  read: [R] row number whose hidden state predicts each required token; target: [R] its id;
    required: [R] its index among the batch's tokens.  forwarded: index among the batch's tokens of each response
    row.  longest: largest position + 1.
    segment_prompt: [N] prompt of each row position; segment_seq: [N] sequence, or -1 on a context.
    images: pixels of each prompt's images, [n, C, H, W] each; None where the batch has no such column.
    """

    ids: Tensor
    positions: Tensor
    contexts: tuple[Tile, ...]
    responses: tuple[Tile, ...]
    cross: tuple[CrossTile, ...]
    read: Tensor
    target: Tensor
    required: Tensor
    longest: int
    segment_prompt: Tensor
    segment_seq: Tensor
    forwarded: Tensor
    images: tuple[Tensor, ...] | None = None

    @property
    def n_positions(self) -> int:
        """Length of the packed row."""
        return len(self.ids)

    @cached_property
    def visible(self) -> Tensor:
        """[N, N] bool: may query i see key j. For the dense path and for tests; quadratic in the row."""
        q_pos, k_pos = self.positions[:, None], self.positions[None, :]
        same_prompt = self.segment_prompt[:, None] == self.segment_prompt[None, :]
        k_seq = self.segment_seq[None, :]
        own = (self.segment_seq[:, None] == k_seq) | (k_seq < 0)
        return same_prompt & own & (k_pos <= q_pos)

    @cached_property
    def memo(self) -> dict[str, object]:
        """Things derived from the plan by an attention backend, kept for the other layers."""
        return {}


def _buckets(lengths: Tensor, waste: float) -> list[Tensor]:
    """Indices grouped so that padding inside a group stays below `waste` of its area; empty spans dropped."""
    if len(lengths) == 0:
        return []
    if int(lengths.min()) == int(lengths.max()):
        return [torch.arange(len(lengths))] if int(lengths.max()) else []
    order = torch.argsort(lengths, descending=True, stable=True)
    sizes = lengths[order].tolist()
    groups: list[Tensor] = []
    start, filled = 0, 0
    for i, size in enumerate(sizes):
        if size == 0:
            sizes = sizes[:i]
            break
        area = (i - start + 1) * sizes[start]
        if i > start and area - filled - size > waste * area:
            groups.append(order[start:i].sort().values)
            start, filled = i, 0
        filled += size
    if start < len(sizes):
        groups.append(order[start : len(sizes)].sort().values)
    return groups


def _cross_tiles(
    q_starts: Tensor, q_lengths: Tensor, k_starts: Tensor, k_lengths: Tensor, waste: float
) -> tuple[CrossTile, ...]:
    tiles = []
    for chosen in _buckets(q_lengths, waste):
        for inner in _buckets(k_lengths[chosen], waste):
            group = chosen[inner]
            queries = tile_of(q_starts[group], q_lengths[group])
            tiles.append(CrossTile(queries, tile_of(k_starts[group], k_lengths[group])))
    return tuple(tiles)


def make_plan(batch: Batch, required: Tensor | None = None, waste: float = 0.25) -> Plan:
    """Lay a batch out. required: [T] bool, tokens whose log-prob is wanted (default all).

    waste: largest share of padding inside the rectangles handed to attention kernels.
    """
    layout: Layout = batch.layout
    if bool((layout.context_lengths == 0).any()):
        empty = int((layout.context_lengths == 0).nonzero()[0])
        raise DataError(f"prompt {empty} of the batch has no tokens, so nothing predicts its first response token")
    wanted = torch.ones(layout.n_tokens, dtype=torch.bool, device=layout.device) if required is None else required
    place = torch.where(wanted, layout.token_position, torch.full_like(layout.token_position, -1))
    # A token at place t is read off place t - 1, so places 0 .. (last wanted - 1) are forwarded.
    forwarded = layout.seq_max(place).clamp(min=0)
    kept = layout.token_position < forwarded[layout.token_seq]

    n_context = layout.n_context
    response_starts = n_context + forwarded.cumsum(0) - forwarded
    context_positions = torch.arange(n_context, device=layout.device) - torch.repeat_interleave(
        layout.context_starts, layout.context_lengths, output_size=n_context
    )
    offset = layout.to_sequences(layout.context_lengths)
    positions = torch.cat([context_positions, (layout.token_position + layout.to_tokens(offset))[kept]])
    context_prompt = torch.repeat_interleave(
        torch.arange(layout.n_prompts, device=layout.device), layout.context_lengths, output_size=n_context
    )
    required_index = wanted.nonzero().flatten()
    seq, at = layout.token_seq[required_index], layout.token_position[required_index]
    last_context = layout.to_sequences(layout.context_starts + layout.context_lengths) - 1
    read = torch.where(at == 0, last_context[seq], response_starts[seq] + at - 1)
    q_lengths = layout.group_sum(forwarded)
    q_starts = n_context + q_lengths.cumsum(0) - q_lengths
    pack = _Packer(waste)
    return Plan(
        ids=torch.cat([batch.context, batch.tokens[kept]]),
        positions=positions,
        contexts=pack(layout.context_starts, layout.context_lengths),
        responses=pack(response_starts, forwarded),
        cross=_cross_tiles(q_starts, q_lengths, layout.context_starts, layout.context_lengths, waste),
        read=read,
        target=batch.tokens[required_index],
        required=required_index,
        longest=int(positions.max()) + 1 if len(positions) else 0,
        segment_prompt=torch.cat([context_prompt, layout.token_prompt[kept]]),
        segment_seq=torch.cat([torch.full_like(context_prompt, -1), layout.token_seq[kept]]),
        forwarded=kept.nonzero().flatten(),
        images=tuple(batch.images) if batch.has("images") else None,
    )


@dataclass(frozen=True)
class _Packer:
    waste: float

    def __call__(self, starts: Tensor, lengths: Tensor) -> tuple[Tile, ...]:
        return tuple(tile_of(starts[group], lengths[group]) for group in _buckets(lengths, self.waste))
