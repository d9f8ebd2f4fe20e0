"""Attention over the packed row, plugged into `transformers` as the implementation "unipo".

Three equal computations:
  pieces  contexts over themselves, responses over themselves, responses over their context; the last two are
          merged by their log-sum-exps.  The prompt's keys are neither repeated nor recomputed.  CPU.
  flex    FlexAttention with the row's visibility as a block mask.  CUDA.
  dense   an explicit [N, N] mask: soft-capped or windowed layers, odd devices, and the reference in tests.

The backward of `pieces` uses the flash-attention identity: with the *merged* output and log-sum-exp, each
piece's kernel returns exactly its share of the gradients (as ring attention does, arXiv 2310.01889).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from unipo.errors import ConfigError
from unipo.policy.packing import CrossTile, Plan, Tile

NAME = "unipo"
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _heads_first(x: Tensor) -> Tensor:
    """[n, width, heads, d] -> [n, heads, width, d] (a view)."""
    return x.transpose(1, 2)


def _key_mask(tile: Tile, dtype: torch.dtype) -> Tensor | None:
    """Additive [n, 1, 1, width] mask that hides padding keys; None if there is none."""
    if bool((tile.lengths == tile.shape[1]).all()):
        return None
    mask = torch.zeros(tile.shape, dtype=dtype, device=tile.index.device).masked_fill_(~tile.real, float("-inf"))
    return mask[:, None, None, :]


def _cross_mask(cross: CrossTile, plan: Plan, dtype: torch.dtype) -> Tensor | None:
    key = f"mask.{id(cross)}.{dtype}"
    if key not in plan.memo:
        mask = _key_mask(cross.keys, dtype)
        # The kernels take [n or 1, heads or 1, queries, keys]; a stride of 0 costs no memory.
        plan.memo[key] = None if mask is None else mask.expand(-1, 1, cross.queries.shape[1], -1)
    return plan.memo[key]  # type: ignore[return-value]


def pieces_forward(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor]:
    """([N, heads, d] output, [N, heads] log-sum-exp). q: [N, heads, d]; k, v: [N, kv_heads, d].

    The kernels take fewer key heads than query heads as they are: query heads h r ... h r + r - 1 share head h.
    """
    out = torch.empty(q.shape, dtype=q.dtype)
    lse = torch.empty(q.shape[:2], dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)
    for tile in (*plan.contexts, *plan.responses):
        tq, tk, tv = (_heads_first(tile.take(x)) for x in (q, k, v))
        o, s = _forward(tq, tk, tv, 0.0, True, scale=scale)
        tile.put(out, o.transpose(1, 2))
        tile.put(lse, s.transpose(1, 2))
    for cross in plan.cross:
        tq = _heads_first(cross.queries.take(q))
        tk, tv = (_heads_first(cross.keys.take(x)) for x in (k, v))
        mask = _cross_mask(cross, plan, q.dtype)
        o, s = _forward(tq, tk, tv, 0.0, False, attn_mask=mask, scale=scale)
        o, s = o.transpose(1, 2), s.transpose(1, 2)
        own_o, own_s = cross.queries.take(out), cross.queries.take(lse)
        share = torch.sigmoid(s - own_s).unsqueeze(-1).to(o.dtype)
        cross.queries.put(out, torch.lerp(own_o, o, share))
        cross.queries.put(lse, torch.logaddexp(s, own_s))
    return out, lse


def pieces_backward(
    grad: Tensor, saved: tuple[Tensor, ...], into: tuple[Tensor, Tensor, Tensor], plan: Plan, scale: float
) -> None:
    """Write the gradients of q, k, v. grad: [N, heads, d]; saved: q, k, v, output, log-sum-exp; into: dq, dk, dv.

    Every row lies in exactly one context or response, so those pieces write and only the cross pieces add.
    """
    for tile in (*plan.contexts, *plan.responses):
        _piece_backward(saved, into, grad, tile, tile, True, None, scale)
    for cross in plan.cross:
        mask = _cross_mask(cross, plan, grad.dtype)
        _piece_backward(saved, into, grad, cross.queries, cross.keys, False, mask, scale)


class _Pieces(torch.autograd.Function):
    """q: [N, heads, d]; k, v: [N, kv_heads, d]; rows of the packed row. Returns [N, heads, d]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float) -> Tensor:
        out, lse = pieces_forward(q, k, v, plan, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, _, _ = ctx.saved_tensors
        into = (torch.empty_like(q), torch.empty_like(k), torch.empty_like(v))
        pieces_backward(grads[0].contiguous(), ctx.saved_tensors, into, ctx.plan, ctx.scale)
        return *into, None, None


def _piece_backward(
    saved: tuple[Tensor, ...],
    into: tuple[Tensor, Tensor, Tensor],
    grad: Tensor,
    queries: Tile,
    keys: Tile,
    causal: bool,
    mask: Tensor | None,
    scale: float,
) -> None:
    """One piece's share of the gradients: written by a causal piece, added by a cross piece."""
    q, k, v, out, lse = saved
    tq, to = _heads_first(queries.take(q)), _heads_first(queries.take(out))
    ts = queries.take(lse).transpose(1, 2)
    tg = queries.take(grad)
    if not queries.exact:
        tg = torch.where(queries.real[..., None, None], tg, torch.zeros_like(tg))
    tk, tv = (_heads_first(keys.take(x)) for x in (k, v))
    found = _backward(_heads_first(tg), tq, tk, tv, to, ts, 0.0, causal, attn_mask=mask, scale=scale)
    for target, tile, value in zip(into, (queries, keys, keys), found, strict=True):
        tile.put(target, value.transpose(1, 2), add=not causal)


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, softcap: float | None = None, window: int | None = None
) -> Tensor:
    """The plain computation under an explicit mask. q: [N, heads, d]; k, v: [N, kv_heads, d]. Returns [N, heads, d].

    softcap: scores become c tanh(scores / c) (Gemma 2).  window: a query sees the last `window` positions only.
    """
    times = q.shape[1] // k.shape[1]
    kk, vv = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    scores = torch.einsum("qhd,khd->hqk", q, kk) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    visible = plan.visible
    if window is not None:
        visible = visible & (plan.positions[:, None] - plan.positions[None, :] < window)
    scores = scores.masked_fill(~visible, float("-inf"))
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    weights = torch.softmax(scores, dim=-1, dtype=wide).to(q.dtype)
    return torch.einsum("hqk,khd->qhd", weights, vv)


def flex_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, softcap: float | None = None, window: int | None = None
) -> Tensor:
    """FlexAttention over the packed row, compiled on CUDA and eager elsewhere. Shapes as `dense_attention`."""
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as flex

    key = f"flex.{window}"
    if key not in plan.memo:
        prompt, seq, position = plan.segment_prompt, plan.segment_seq, plan.positions

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            own = (seq[i] == seq[j]) | (seq[j] < 0)
            seen = (prompt[i] == prompt[j]) & own & (position[j] <= position[i])
            return seen if window is None else seen & (position[i] - position[j] < window)

        n = plan.n_positions
        plan.memo[key] = create_block_mask(visible, None, None, n, n, device=str(q.device))

    cap = softcap or 0.0

    def capped(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    run: Any = torch.compile(flex) if q.is_cuda else flex
    out: Tensor = run(
        *(x.transpose(0, 1)[None] for x in (q, k, v)),
        score_mod=None if softcap is None else capped,
        block_mask=plan.memo[key],
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[0].transpose(0, 1)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    unipo_plan: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What `transformers` calls in every layer. query: [1, heads, N, d]; key, value: [1, kv_heads, N, d]."""
    if unipo_plan is None:
        raise ConfigError("a model prepared for packed rows was called without a plan; use Policy.forward")
    if dropout:
        raise ConfigError(f"attention dropout {dropout} is not supported: set it to 0, or the ratios are noise")
    if kwargs.get("s_aux") is not None:
        raise ConfigError("attention sinks are not supported by the packed forward")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if not query.dtype == key.dtype == value.dtype:
        # Under autocast a norm or the rotary tables leave queries and keys in float32 beside bfloat16 values.
        query, key = query.to(value.dtype), key.to(value.dtype)
    if hasattr(unipo_plan, "attend"):  # a decoding plan brings its own cache
        return unipo_plan.attend(module, query, key, value, scale, softcap, sliding_window), None
    plan: Plan = unipo_plan
    window = sliding_window if sliding_window is not None and sliding_window < plan.longest else None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return packed_rows(q, k, v, plan, scale, softcap, window)[None], None


def packed_rows(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float, softcap: float | None = None, window: int | None = None
) -> Tensor:
    """Attention over the packed row by the fastest exact way. q: [N, heads, d]; k, v: [N, kv_heads, d]. Returns q's shape.

    softcap: scores become c tanh(scores / c) (Gemma 2).  window: a query sees the last `window` positions only.
    """
    if q.is_cuda:
        return flex_attention(q, k, v, plan, scale, softcap, window)
    if softcap is not None or window is not None or q.device.type != "cpu":
        return dense_attention(q, k, v, plan, scale, softcap, window)
    return _Pieces.apply(q, k, v, plan, scale)  # type: ignore[no-any-return,no-untyped-call]


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The plan is the mask; `transformers` is told not to build one."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
