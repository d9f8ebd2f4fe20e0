"""Keys and values while decoding: prompts once per prompt, responses per row.

A row is one response being written.  Its attention has two parts, over the prompt it shares with its group and
over its own tokens; one softmax runs over the scores of both.  Caches lead with the key-value head, so that the
rows of a prompt and the query heads of a key head are adjacent and become the rows of one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.policy.attention import packed_attention
from unipo.policy.packing import Plan

Masks = tuple[Tensor | None, Tensor | None]


def cache_dtype(x: Tensor) -> torch.dtype:
    """Dtype in which keys and values are kept: on a CPU products of short bfloat16 rows gain nothing over float32."""
    return torch.float32 if x.device.type == "cpu" and x.dtype != torch.float64 else x.dtype


class Prefill:
    """A plan that also keeps each layer's keys and values of the contexts. Passed to the model as `unipo_plan`.

    keys, values: [N, kv_heads, d] by layer.  softcaps, windows: what attention variants the layers asked for.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.softcaps: set[float | None] = set()
        self.windows: set[int | None] = set()

    def attend(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: Any, window: Any
    ) -> Tensor:
        """Attention of one layer over the packed prompts, whose keys and values are kept."""
        self.keep(int(module.layer_idx), k[0].transpose(0, 1), v[0].transpose(0, 1))  # type: ignore[arg-type]
        self.softcaps.add(softcap)
        self.windows.add(window)
        out, _ = packed_attention(
            module, q, k, v, None, scaling=scale, sliding_window=window, softcap=softcap, unipo_plan=self.plan
        )
        return out

    def keep(self, layer: int, k: Tensor, v: Tensor) -> None:
        """k, v: [N, kv_heads, d]."""
        self.keys[layer], self.values[layer] = k, v


@dataclass
class LayerCache:
    """context_k, context_v: [kv_heads, P, C, d]; own_k, own_v: [kv_heads, R, capacity, d]."""

    context_k: Tensor
    context_v: Tensor
    own_k: Tensor
    own_v: Tensor

    def grow(self, width: int) -> None:
        """Double the room of the responses until `width` tokens fit."""
        if self.own_k.shape[2] < width:
            self.own_k, self.own_v = (_grow(x, width) for x in (self.own_k, self.own_v))


@dataclass
class DecodeState:
    """Which row belongs to which cached prompt, and how much each has written.

    row_prompt: [R] ascending.  context_lengths: [P].  lengths: [R] tokens written to the cache.  positions: [R] of
    the token each row forwards next.  level: tokens written if that is the same for all rows, else -1; width: after
    the coming step.  Passed to the model as `unipo_plan` when every row is forwarded by one token.
    """

    row_prompt: Tensor
    context_lengths: Tensor
    lengths: Tensor
    layers: dict[int, LayerCache] = field(default_factory=dict)
    positions: Tensor = field(init=False)
    level: int = field(init=False, default=-1)
    width: int = field(init=False, default=0)
    longest: int = field(init=False, default=0)
    _table: Tensor | None = None
    _place: Tensor | None = None
    _masks: dict[int | None, Masks] = field(default_factory=dict)
    _arranged: bool = False

    def arrange(self) -> None:
        """Recompute what is derived from rows and prompts, after they changed."""
        counts = torch.bincount(self.row_prompt, minlength=len(self.context_lengths))
        most = int(counts.max())
        self._table = self._place = None
        if not bool((counts == most).all()):
            starts = counts.cumsum(0) - counts
            slot = torch.arange(most, device=counts.device)
            self._table = (starts[:, None] + torch.minimum(slot[None, :], counts[:, None] - 1)).flatten()
            within = torch.arange(len(self.row_prompt), device=counts.device) - starts[self.row_prompt]
            self._place = self.row_prompt * most + within
        self.lengths = self.lengths.clone()
        self.positions = self.context_lengths[self.row_prompt] + self.lengths
        low, high = int(self.lengths.min()), int(self.lengths.max())
        self.level = low if low == high else -1
        self.width = high + 1
        self.longest = int(self.positions.max()) + 1
        self._masks.clear()
        self._arranged = True

    def begin_step(self) -> None:
        """Make room for one more token per row."""
        if not self._arranged:
            raise ConfigError("DecodeState.arrange() was not called after its rows changed")
        for cache in self.layers.values():
            cache.grow(self.width)

    def end_step(self) -> None:
        """Every row has grown by a token."""
        self.lengths += 1
        self.positions += 1
        self.level += self.level >= 0
        self.width += 1
        self.longest += 1
        # Only what prompts of unequal length hide stays the same from step to step.
        self._masks = {None: self._masks[None]} if self.level >= 0 and None in self._masks else {}

    def write(self, layer: int, k: Tensor, v: Tensor) -> LayerCache:
        """Append one token per row. k, v: [kv_heads, R, d]."""
        cache = self.layers[layer]
        if self.level >= 0:
            cache.own_k[:, :, self.level] = k
            cache.own_v[:, :, self.level] = v
        else:
            rows = torch.arange(k.shape[1], device=k.device)
            cache.own_k[:, rows, self.lengths] = k.to(cache.own_k.dtype)
            cache.own_v[:, rows, self.lengths] = v.to(cache.own_v.dtype)
        return cache

    def attend(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: Any, window: Any
    ) -> Tensor:
        """The attention interface. q: [R, heads, 1, d]; k, v: [R, kv_heads, 1, d]. Returns [R, 1, heads, d]."""
        rows, heads, _, d = q.shape
        kv = k.shape[1]
        cache = self.write(int(module.layer_idx), k[:, :, 0].transpose(0, 1), v[:, :, 0].transpose(0, 1))  # type: ignore[arg-type]
        grouped = q.view(rows, kv, heads // kv, d).transpose(0, 1).to(cache.own_k.dtype).contiguous()
        window = None if window is None or window >= self.longest else int(window)
        with torch.autocast(q.device.type, enabled=False):  # or it would round what the cache keeps in float32
            out, _ = self.mix(cache, grouped, scale, softcap, window)
        return out.transpose(0, 1).reshape(rows, 1, heads, d).to(q.dtype)

    def mix(
        self,
        cache: LayerCache,
        q: Tensor,
        scale: float,
        softcap: float | None = None,
        window: int | None = None,
        lse: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Every row over its prompt and its own tokens, the new one included. q: [kv_heads, R, r, d], contiguous,
        r query heads for each key head. Returns ([kv_heads, R, r, d], [kv_heads, R, r] log-sum-exps if asked)."""
        kv, rows, r, d = q.shape
        prompts, context = cache.context_k.shape[1:3]
        spread = q if self._table is None else q.index_select(1, self._table)
        keys = cache.context_k.view(kv * prompts, context, d)
        own_k = cache.own_k[:, :, : self.width].flatten(0, 1)
        own_v = cache.own_v[:, :, : self.width].flatten(0, 1)
        own = _scores(q.view(kv * rows, r, d), own_k, scale).view(kv, rows, r, -1)
        shared = _scores(spread.view(kv * prompts, -1, d), keys, scale).view(kv, -1, r, context)
        if self._place is not None:
            shared = shared.index_select(1, self._place)
        if softcap is not None:
            own, shared = (softcap * torch.tanh(x / softcap) for x in (own, shared))
        hide_shared, hide_own = self._mask(window, context, q.dtype)
        shared = shared if hide_shared is None else shared + hide_shared
        own = own if hide_own is None else own + hide_own
        scores = torch.cat([shared, own], -1)
        weights = torch.softmax(scores, -1, dtype=torch.float32 if q.is_cuda else None).to(q.dtype)
        # The heaviest key gives back the log-sum-exp without a second pass of exponentials.
        sums = scores.amax(-1) - weights.amax(-1).log_() if lse else None
        over_context, over_own = weights[..., :context], weights[..., context:]
        values = cache.context_v.view(kv * prompts, context, d)
        out = torch.bmm(over_own.contiguous().view(kv * rows, r, -1), own_v)  # strided, it is several times slower
        if self._place is None:
            out.view(kv * prompts, -1, d).baddbmm_(over_context.reshape(kv * prompts, -1, context), values)
            return out.view(kv, rows, r, d), sums
        over_context = over_context.index_select(1, self._table).view(kv * prompts, -1, context)  # type: ignore[arg-type]
        from_context = torch.bmm(over_context, values).view(kv, -1, r, d)
        return out.view(kv, rows, r, d).add_(from_context.index_select(1, self._place)), sums

    def _mask(self, window: int | None, context: int, dtype: torch.dtype) -> Masks:
        """([R, 1, C], [R, 1, width]) additive masks, None where nothing is hidden; kept for the other layers."""
        if window not in self._masks:
            self._masks[window] = self._make_masks(window, context, dtype)
        return self._masks[window]

    def _make_masks(self, window: int | None, context: int, dtype: torch.dtype) -> Masks:
        lengths = self.context_lengths[self.row_prompt][:, None]
        at = torch.arange(context, device=lengths.device)[None, :]
        own_at = torch.arange(self.width, device=lengths.device)[None, :]
        shared, own = at >= lengths, own_at > self.lengths[:, None]
        if window is not None:
            shared = shared | (self.positions[:, None] - at >= window)
            own = own | (self.lengths[:, None] - own_at >= window)
        return _additive(shared, dtype), _additive(own, dtype)


def _additive(hidden: Tensor, dtype: torch.dtype) -> Tensor | None:
    if not bool(hidden.any()):
        return None
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, float("-inf"))[:, None, :]


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """scale * q k^T. q: [n, l, d]; k: [n, m, d]. Returns [n, l, m]."""
    unread = torch.empty((1, 1, 1), dtype=q.dtype, device=q.device)
    return torch.baddbmm(unread, q, k.transpose(1, 2), beta=0, alpha=scale)


def _grow(x: Tensor, width: int) -> Tensor:
    """Double the capacity along dimension 2 until `width` fits. New room is zeroed: 0 times a stray NaN is NaN."""
    capacity = max(width, 2 * x.shape[2], 16)
    bigger = x.new_zeros(x.shape[0], x.shape[1], capacity, x.shape[3])
    bigger[:, :, : x.shape[2]] = x
    return bigger


def first_state(prefill: Prefill, layout: Layout, row_prompt: Tensor, room: int) -> DecodeState:
    """The state of rows that have written nothing yet. layout: of the prompts; row_prompt: [R] ascending; room:
    tokens per row to make room for at first."""
    state = DecodeState(row_prompt, layout.context_lengths, torch.zeros_like(row_prompt))
    for layer, keys in prefill.keys.items():
        context_k, context_v = (_padded(x, layout) for x in (keys, prefill.values[layer]))
        own = (context_k.new_zeros(context_k.shape[0], len(row_prompt), room, context_k.shape[3]) for _ in range(2))
        state.layers[layer] = LayerCache(context_k, context_v, *own)
    state.arrange()
    return state


def keep_rows(state: DecodeState, index: Tensor) -> DecodeState:
    """Only these rows, and only the prompts they still need. index: [K] ascending."""
    prompts, row_prompt = state.row_prompt[index].unique(return_inverse=True)
    kept = DecodeState(row_prompt, state.context_lengths[prompts], state.lengths[index])
    all_prompts = len(prompts) == len(state.context_lengths)
    for layer, c in state.layers.items():
        context_k, context_v = (x if all_prompts else x.index_select(1, prompts) for x in (c.context_k, c.context_v))
        kept.layers[layer] = LayerCache(context_k, context_v, *(x.index_select(1, index) for x in (c.own_k, c.own_v)))
    kept.arrange()
    return kept


def join_rows(a: DecodeState, b: DecodeState) -> DecodeState:
    """Rows of `b` after those of `a`; a prompt that continues in `b` is simply cached twice until its rows finish."""
    row_prompt = torch.cat([a.row_prompt, b.row_prompt + len(a.context_lengths)])
    context_lengths = torch.cat([a.context_lengths, b.context_lengths])
    joined = DecodeState(row_prompt, context_lengths, torch.cat([a.lengths, b.lengths]))
    for layer, x in a.layers.items():
        y = b.layers[layer]
        names = ("context_k", "context_v", "own_k", "own_v")
        joined.layers[layer] = LayerCache(*(_stack(getattr(x, name), getattr(y, name)) for name in names))
    joined.arrange()
    return joined


def _padded(rows: Tensor, layout: Layout) -> Tensor:
    """[N, kv_heads, d] context rows -> [kv_heads, P, C, d], zeros on the padding."""
    width = int(layout.context_lengths.max())
    prompts = layout.n_prompts
    rows = rows.to(cache_dtype(rows))
    if bool((layout.context_lengths == width).all()):
        return rows.view(prompts, width, *rows.shape[1:]).permute(2, 0, 1, 3).contiguous()
    out = rows.new_zeros(prompts, width, *rows.shape[1:])
    real = torch.arange(width, device=rows.device)[None, :] < layout.context_lengths[:, None]
    out[real] = rows
    return out.permute(2, 0, 1, 3).contiguous()


def _stack(x: Tensor, y: Tensor) -> Tensor:
    """Concatenate [kv, n, width, d] blocks along n; widths may differ, the narrower is padded with zeros."""
    width = max(x.shape[2], y.shape[2])
    out = x.new_zeros(x.shape[0], x.shape[1] + y.shape[1], width, x.shape[3])
    out[:, : x.shape[1], : x.shape[2]] = x
    out[:, x.shape[1] :, : y.shape[2]] = y
    return out
