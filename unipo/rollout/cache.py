"""Keys and values while decoding: prompts once per prompt, responses per row.

A row is one response being written.  Its attention has two parts, over the prompt it shares with its group and
over its own tokens, merged by their log-sum-exps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unipo.errors import ConfigError
from unipo.policy.attention import packed_attention
from unipo.policy.packing import Plan

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Prefill:
    """A plan that also keeps each layer's keys and values of the contexts. Passed to the model as `unipo_plan`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def attend(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: Any, window: Any
    ) -> Tensor:
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        self.keys[layer], self.values[layer] = k[0].transpose(0, 1), v[0].transpose(0, 1)  # [N, kv_heads, d]
        out, _ = packed_attention(
            module, q, k, v, None, scaling=scale, sliding_window=window, softcap=softcap, unipo_plan=self.plan
        )
        return out


@dataclass
class LayerCache:
    """context_k, context_v: [P, kv_heads, C, d]; own_k, own_v: [R, kv_heads, capacity, d]."""

    context_k: Tensor
    context_v: Tensor
    own_k: Tensor
    own_v: Tensor


@dataclass
class DecodeState:
    """Which row belongs to which cached prompt, and how much each has written.

    row_prompt: [R] ascending.  context_lengths: [P].  lengths: [R] tokens written to the cache.  Passed to the
    model as `unipo_plan` when every row is forwarded by one token.
    """

    row_prompt: Tensor
    context_lengths: Tensor
    lengths: Tensor
    layers: dict[int, LayerCache] = field(default_factory=dict)
    _table: Tensor | None = None
    _place: Tensor | None = None
    _context_mask: Tensor | None = None
    _regular: int = 0
    _own_mask: Tensor | None = None
    _level: int = -1

    def begin_step(self) -> None:
        """Fix what all layers share in the coming step."""
        low, high = int(self.lengths.min()), int(self.lengths.max())
        self._level = low if low == high else -1
        width = high + 1
        if self._level < 0:
            visible = torch.arange(width, device=self.lengths.device)[None, :] <= self.lengths[:, None]
            mask = torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, float("-inf"))
            self._own_mask = mask[:, None, None, :]
        else:
            self._own_mask = None
        for cache in self.layers.values():
            if cache.own_k.shape[2] < width:
                cache.own_k, cache.own_v = (_grow(x, width) for x in (cache.own_k, cache.own_v))

    def end_step(self) -> None:
        self.lengths = self.lengths + 1

    @property
    def positions(self) -> Tensor:
        """[R] position of the token each row forwards next."""
        return self.context_lengths[self.row_prompt] + self.lengths

    def arrange(self) -> None:
        """Recompute the row table after rows or prompts changed."""
        counts = torch.bincount(self.row_prompt, minlength=len(self.context_lengths))
        most = int(counts.max())
        self._regular = most if bool((counts == most).all()) else 0
        starts = counts.cumsum(0) - counts
        slot = torch.arange(most, device=counts.device)
        self._table = starts[:, None] + torch.minimum(slot[None, :], counts[:, None] - 1)
        within = torch.arange(len(self.row_prompt), device=counts.device) - starts[self.row_prompt]
        self._place = self.row_prompt * most + within
        # After prompts were dropped the cache may be wider than its longest remaining prompt.
        longest = max((c.context_k.shape[2] for c in self.layers.values()), default=int(self.context_lengths.max()))
        if bool((self.context_lengths == longest).all()):
            self._context_mask = None
        else:
            hidden = torch.arange(longest, device=counts.device)[None, :] >= self.context_lengths[:, None]
            mask = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))
            self._context_mask = mask[:, None, None, :]

    def write(self, layer: int, k: Tensor, v: Tensor) -> LayerCache:
        """Append one token per row. k, v: [R, kv_heads, d]."""
        cache = self.layers[layer]
        if self._level >= 0:
            cache.own_k[:, :, self._level] = k
            cache.own_v[:, :, self._level] = v
        else:
            rows = torch.arange(len(k), device=k.device)
            cache.own_k[rows, :, self.lengths] = k
            cache.own_v[rows, :, self.lengths] = v
        return cache

    def attend_rows(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q: [R, heads, d]; k, v: [R, kv_heads, d] of the new token. Returns [R, heads, d]."""
        cache = self.write(layer, k, v)
        rows, heads, d = q.shape
        kv = k.shape[1]
        q = q.view(rows, kv, heads // kv, d)
        width = int(self._level) + 1 if self._level >= 0 else int(self._own_mask.shape[-1])  # type: ignore[union-attr]
        own, own_lse = _attention(q, cache.own_k[:, :, :width], cache.own_v[:, :, :width], self._own_mask, scale)
        shared, shared_lse = self._over_contexts(cache, q, scale)
        share = torch.sigmoid(shared_lse - own_lse).unsqueeze(-1).to(own.dtype)
        return torch.lerp(own, shared, share).reshape(rows, heads, d)

    def _over_contexts(self, cache: LayerCache, q: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Every row over its own prompt. q: [R, kv, r, d]. Returns ([R, kv, r, d], [R, kv, r])."""
        rows, kv, r, d = q.shape
        prompts = len(self.context_lengths)
        if self._table is None or self._place is None:
            raise ConfigError("DecodeState.arrange() was not called after its rows changed")
        most = self._table.shape[1]
        grouped = q if self._regular else q.index_select(0, self._table.flatten())
        grouped = grouped.view(prompts, most, kv, r, d).transpose(1, 2).reshape(prompts, kv, most * r, d)
        out, lse = _attention(grouped, cache.context_k, cache.context_v, self._context_mask, scale)
        out = out.view(prompts, kv, most, r, d).transpose(1, 2).reshape(prompts * most, kv, r, d)
        lse = lse.reshape(prompts, kv, most, r).transpose(1, 2).reshape(prompts * most, kv, r)
        if self._regular:
            return out, lse
        return out.index_select(0, self._place), lse.index_select(0, self._place)

    def attend(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: Any, window: Any
    ) -> Tensor:
        """The attention interface's view of `attend_rows`. q: [R, heads, 1, d]. Returns [R, 1, heads, d]."""
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        longest = int(self.positions.max()) + 1
        if softcap is None and (window is None or window >= longest):
            return self.attend_rows(layer, q[:, :, 0], k[:, :, 0], v[:, :, 0], scale)[:, None]
        return self._attend_plain(layer, q[:, :, 0], k[:, :, 0], v[:, :, 0], scale, softcap, window)[:, None]

    def _attend_plain(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None, window: int | None
    ) -> Tensor:
        """Soft-capped or windowed layers: explicit scores over [context | own]. Shapes as `attend_rows`."""
        cache = self.write(layer, k, v)
        width = int(self.lengths.max()) + 1
        times = q.shape[1] // k.shape[1]
        keys = torch.cat([cache.context_k[self.row_prompt], cache.own_k[:, :, :width]], 2).repeat_interleave(times, 1)
        values = torch.cat([cache.context_v[self.row_prompt], cache.own_v[:, :, :width]], 2).repeat_interleave(times, 1)
        context = self.context_lengths[self.row_prompt][:, None]
        at = torch.arange(cache.context_k.shape[2], device=q.device)[None, :]
        own_at = torch.arange(width, device=q.device)[None, :]
        position = torch.cat([at.expand(len(q), -1), context + own_at], 1)
        visible = torch.cat([at < context, own_at <= self.lengths[:, None]], 1)
        if window is not None:
            visible = visible & (self.positions[:, None] - position < window)
        scores = torch.einsum("rhd,rhkd->rhk", q, keys) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~visible[:, None, :], float("-inf"))
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        return torch.einsum("rhk,rhkd->rhd", torch.softmax(scores, -1, dtype=wide).to(q.dtype), values)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Non-causal attention with its log-sum-exp. q: [n, heads, l, d]; k, v: [n, heads, m, d]; mask: [n, 1, 1, m].

    Returns ([n, heads, l, d], [n, heads, l])."""
    if q.device.type == "cpu":
        if mask is not None:
            mask = mask.to(q.dtype).expand(-1, 1, q.shape[2], -1)
        out, lse = _flash(q, k, v, 0.0, False, attn_mask=mask, scale=scale)
        return out, lse
    scores = (q @ k.transpose(-1, -2)).float() * scale
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(v.dtype) @ v, lse


def _grow(x: Tensor, width: int) -> Tensor:
    """Double the capacity along dimension 2 until `width` fits."""
    capacity = max(width, 2 * x.shape[2], 16)
    bigger = x.new_zeros(x.shape[0], x.shape[1], capacity, x.shape[3])
    bigger[:, :, : x.shape[2]] = x
    return bigger
