"""A whole decoder layer of the Llama family as one differentiable function, for the packed row on a CPU.

    h = x + o(attention(norm(x)));   y = h + down(silu(gate(norm(h))) * up(norm(h)))
The same arithmetic as the layer's modules with a backward written by hand: nothing is kept that a pass over memory
can remake (norms, SwiGLU), q/k/v are one product, and the rotary embedding is one complex product, for which the two
halves of each head are interleaved (scores do not change when queries and keys are permuted alike).

`unipo.policy.fitting` puts it into models.

Under autocast the products with weights run in its dtype; residuals, norms, rotation and, unlike autocast, attention
in float32, whose backward is the faster one on CPUs measured (and which is what `unipo.rollout.lean` samples with).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from unipo.policy.attention import pieces_backward, pieces_forward
from unipo.policy.family import Unfit
from unipo.policy.norm import inverse_rms, normalise, normalise_backward
from unipo.policy.packing import Plan
from unipo.policy.products import forward_product, input_gradient, weight_gradient
from unipo.policy.tape import LayerRows

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm", "q_norm", "k_norm")
NAMES = (*PROJECTIONS, *(f"{name}.bias" for name in PROJECTIONS), *NORMS)  # in the order they are passed


@dataclass(frozen=True)
class LayerShape:
    """heads, kv_heads, d: of attention.  scale: of its scores.  eps: of the two norms and of the heads' norms."""

    heads: int
    kv_heads: int
    d: int
    scale: float
    eps: tuple[float, float]
    heads_eps: float
    window: int | None = None

    @property
    def turned(self) -> int:
        """Heads that the rotary embedding turns: those of queries and keys."""
        return self.heads + self.kv_heads


def interleave(x: Tensor, d: int) -> Tensor:
    """Rows of each head from (first half, second half) to pairs. x: [heads * d, ...]."""
    return x.view(-1, 2, d // 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


def _separate(x: Tensor, d: int) -> Tensor:
    """The inverse of `interleave`."""
    return x.view(-1, d // 2, 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


def _heads_norm(of_q: Tensor | None, of_k: Tensor | None, shape: LayerShape) -> Tensor | None:
    """[heads + kv_heads, d] weights of the norms of queries and keys, interleaved; None without such norms."""
    if of_q is None or of_k is None:
        return None
    q, k = (interleave(x, shape.d) for x in (of_q, of_k))
    return torch.cat([q.expand(shape.heads, -1), k.expand(shape.kv_heads, -1)])


class _Weights:
    """The layer's tensors in the order they are passed to the function: weights, biases, norm weights."""

    def __init__(self, tensors: tuple[Tensor | None, ...], shape: LayerShape, compute: torch.dtype) -> None:
        count = len(PROJECTIONS)
        self.shape = shape
        weight = dict(zip(PROJECTIONS, tensors[:count], strict=True))
        bias = dict(zip(PROJECTIONS, tensors[count : 2 * count], strict=True))
        first, second, of_q, of_k = tensors[2 * count :]
        if first is None or second is None:
            raise Unfit("a layer without norms")
        self.weight: dict[str, Tensor] = {n: w.to(compute) for n, w in weight.items() if w is not None}
        self.bias = {n: None if b is None else b.to(compute) for n, b in bias.items()}
        self.norm, self.mlp_norm = first, second
        self.qkv = torch.cat([self._arranged(n, self.weight[n]) for n in PROJECTIONS[:3]])
        biases = [self.bias[n] for n in PROJECTIONS[:3]]
        self.qkv_bias: Tensor | None = None
        if any(b is not None for b in biases):
            parts = zip(PROJECTIONS, biases, strict=False)
            zero = self.qkv.new_zeros
            self.qkv_bias = torch.cat(
                [zero(len(self.weight[n])) if b is None else self._arranged(n, b) for n, b in parts]
            )
        self.heads_norm = _heads_norm(of_q, of_k, shape)

    def _arranged(self, name: str, x: Tensor) -> Tensor:
        return x if name == "v_proj" else interleave(x, self.shape.d)


@dataclass
class _Kept:
    """What the backward reads again. All [N, ...]."""

    x: Tensor
    inverse: Tensor
    qkv: Tensor
    heads_inverse: Tensor
    turned: Tensor
    v: Tensor
    attended: Tensor
    lse: Tensor
    middle: Tensor
    mlp_inverse: Tensor
    gate: Tensor
    up: Tensor


def _run(x: Tensor, turn: Tensor, w: _Weights, plan: Plan, compute: torch.dtype) -> tuple[Tensor, _Kept]:
    """The forward. x: [N, hidden]; turn: [N, 1, d / 2] complex."""
    s, n = w.shape, len(x)
    z, inverse = normalise(x, s.eps[0])
    qkv = forward_product(z.mul_(w.norm).to(compute), w.qkv, w.qkv_bias).view(n, -1, s.d)
    turned, heads_inverse = _queries_keys(qkv, turn, w.heads_norm, s, x.dtype)
    v = qkv[:, s.turned :].to(x.dtype)
    attended, lse = pieces_forward(turned[:, : s.heads], turned[:, s.heads :], v, plan, s.scale)
    out = forward_product(attended.view(n, -1).to(compute), w.weight["o_proj"], w.bias["o_proj"])
    middle = out.add_(x) if out.dtype == x.dtype else x + out
    z, mlp_inverse = normalise(middle, s.eps[1])
    y = z.mul_(w.mlp_norm).to(compute)
    gate = forward_product(y, w.weight["gate_proj"], w.bias["gate_proj"])
    up = forward_product(y, w.weight["up_proj"], w.bias["up_proj"])
    out = forward_product(silu(gate).mul_(up), w.weight["down_proj"], w.bias["down_proj"])
    result = out.add_(middle) if out.dtype == x.dtype else middle + out
    return result, _Kept(x, inverse, qkv, heads_inverse, turned, v, attended, lse, middle, mlp_inverse, gate, up)


def _queries_keys(
    qkv: Tensor, turn: Tensor, heads_norm: Tensor | None, s: LayerShape, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """([N, heads + kv_heads, d] normed and turned, [N, heads + kv_heads, 1] inverse norms or nothing)."""
    both = qkv[:, : s.turned].to(dtype)
    inverse = both.new_empty(0)
    if heads_norm is not None:
        both, inverse = normalise(both, s.heads_eps)
        both.mul_(heads_norm)
    return _turn(both, turn), inverse


def _taken_over(
    x: Tensor, turn: Tensor, rows: LayerRows, heads_norm: Tensor | None, s: LayerShape
) -> tuple[Tensor, _Kept]:
    """What `_run` returns, from what sampling kept: no product with weights and no attention."""
    n = len(x)
    qkv = rows.qkv.view(n, -1, s.d)
    turned, heads_inverse = _queries_keys(qkv, turn, heads_norm, s, x.dtype)
    gate, up = rows.gate_up.chunk(2, -1)
    return rows.out, _Kept(
        x=x,
        inverse=inverse_rms(x, s.eps[0]),
        qkv=qkv,
        heads_inverse=heads_inverse,
        turned=turned,
        v=qkv[:, s.turned :].to(x.dtype),
        attended=rows.attended.view(n, s.heads, s.d),
        lse=rows.lse,
        middle=rows.middle,
        mlp_inverse=inverse_rms(rows.middle, s.eps[1]),
        gate=gate,
        up=up,
    )


def _turn(both: Tensor, turn: Tensor) -> Tensor:
    """Rotate interleaved pairs. both: [N, heads, d]; turn: [N, 1, d / 2] complex."""
    pairs = torch.view_as_complex(both.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2)


class _Backward:
    """The backward of `_run`, part by part; `grads` collects the gradients of the wanted weights by name."""

    def __init__(
        self, kept: _Kept, w: _Weights, compute: torch.dtype, turn: Tensor, plan: Plan, wanted: frozenset[str]
    ) -> None:
        self.kept, self.w, self.compute, self.turn, self.plan, self.wanted = kept, w, compute, turn, plan, wanted
        self.grads: dict[str, Tensor] = {}
        self.wide = kept.x.dtype

    def __call__(self, g: Tensor) -> Tensor:
        """dL/dx from g = dL/dy. [N, hidden]."""
        kept, w = self.kept, self.w
        g = self._norm_back(self._mlp(g.to(self.compute)), kept.middle, kept.mlp_inverse, w.mlp_norm, 1).add_(g)
        half = g.to(self.compute)
        self._linear("o_proj", half, kept.attended.flatten(1).to(self.compute))
        d_out = input_gradient(half, w.weight["o_proj"]).to(self.wide).view(kept.attended.shape)
        return self._norm_back(self._attention(d_out), kept.x, kept.inverse, w.norm, 0).add_(g)

    def _linear(self, name: str, g: Tensor, x: Tensor) -> None:
        if name in self.wanted:
            self.grads[name] = weight_gradient(g, x, self.wide)
        if self.w.bias[name] is not None:
            self.grads[f"{name}.bias"] = g.sum(0, dtype=self.wide)

    def _norm_back(self, g: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, which: int) -> Tensor:
        dx, per_row = normalise_backward(g.to(self.wide), x * inverse, inverse, weight)
        self.grads[NORMS[which]] = per_row.sum(0)
        return dx

    def _mlp(self, g: Tensor) -> Tensor:
        """Gradient of the normed input of the MLP. g: [N, hidden]."""
        kept, w = self.kept, self.w
        inner = input_gradient(g, w.weight["down_proj"])
        active = silu(kept.gate)
        d_up = inner * active
        self._linear("down_proj", g, active.mul_(kept.up))
        d_gate = torch.ops.aten.silu_backward(inner.mul_(kept.up), kept.gate)
        y = (kept.middle * kept.mlp_inverse).mul_(w.mlp_norm).to(self.compute)
        self._linear("gate_proj", d_gate, y)
        self._linear("up_proj", d_up, y)
        return input_gradient(d_up, w.weight["up_proj"], plus=input_gradient(d_gate, w.weight["gate_proj"]))

    def _attention(self, g: Tensor) -> Tensor:
        """Gradient of the normed input of the projections. g: [N, heads, d]."""
        kept, w, s = self.kept, self.w, self.w.shape
        d_qkv = torch.empty(kept.qkv.shape, dtype=self.wide)
        into = (d_qkv[:, : s.heads], d_qkv[:, s.heads : s.turned], d_qkv[:, s.turned :])
        saved = (kept.turned[:, : s.heads], kept.turned[:, s.heads :], kept.v, kept.attended, kept.lse)
        pieces_backward(g, saved, into, self.plan, s.scale)
        d_both = _turn(d_qkv[:, : s.turned], self.turn.conj())
        if w.heads_norm is not None:
            z = kept.qkv[:, : s.turned] * kept.heads_inverse
            d_both, per_row = normalise_backward(d_both, z, kept.heads_inverse, w.heads_norm)
            both = per_row.sum(0)
            for name, part in (("q_norm", both[: s.heads]), ("k_norm", both[s.heads :])):
                self.grads[name] = _separate(part.sum(0), s.d)
        d_qkv[:, : s.turned] = d_both
        flat = d_qkv.view(len(g), -1).to(self.compute)
        self._projections(flat)
        return input_gradient(flat, w.qkv)

    def _projections(self, flat: Tensor) -> None:
        """Gradients of the q, k and v weights and biases. flat: [N, (heads + 2 kv_heads) d]."""
        kept, w, s = self.kept, self.w, self.w.shape
        if self.wanted.isdisjoint({*PROJECTIONS[:3], *(f"{name}.bias" for name in PROJECTIONS[:3])}):
            return
        y = (kept.x * kept.inverse).mul_(w.norm).to(self.compute)
        sizes = [s.heads * s.d, s.kv_heads * s.d, s.kv_heads * s.d]
        weights = weight_gradient(flat, y, self.wide).split(sizes)
        biases = flat.sum(0, dtype=self.wide).split(sizes)
        for name, weight, bias in zip(PROJECTIONS, weights, biases, strict=False):
            self.grads[name] = weight if name == "v_proj" else _separate(weight, s.d)
            self.grads[f"{name}.bias"] = bias if name == "v_proj" else _separate(bias, s.d)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        turn: Tensor,
        plan: Plan,
        shape: LayerShape,
        remake: bool,
        rows: LayerRows | None,
        *tensors: Tensor | None,
    ) -> Tensor:
        device = x.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            if rows is None:
                out, kept = _run(x, turn, _Weights(tensors, shape, compute), plan, compute)
            else:
                out, kept = _taken_over(x, turn, rows, _heads_norm(tensors[-2], tensors[-1], shape), shape)
        ctx.plan, ctx.shape, ctx.compute, ctx.remake, ctx.count = plan, shape, compute, remake, len(tensors)
        rest = () if remake else tuple(vars(kept).values())[1:]
        ctx.save_for_backward(x, turn, *tensors, *rest)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, turn, *saved = ctx.saved_tensors
        tensors, rest = tuple(saved[: ctx.count]), saved[ctx.count :]
        with torch.autocast(x.device.type, enabled=False):
            w = _Weights(tensors, ctx.shape, ctx.compute)
            kept = _run(x, turn, w, ctx.plan, ctx.compute)[1] if ctx.remake else _Kept(x, *rest)
            wanted = frozenset(name for name, needs in zip(NAMES, ctx.needs_input_grad[6:], strict=True) if needs)
            back = _Backward(kept, w, ctx.compute, turn, ctx.plan, wanted)
            dx = back(grads[0])
        return dx, None, None, None, None, None, *(back.grads.get(name) if name in wanted else None for name in NAMES)


def decoder_layer(
    x: Tensor,
    turn: Tensor,
    plan: Plan,
    shape: LayerShape,
    tensors: tuple[Tensor | None, ...],
    remake: bool = False,
    rows: LayerRows | None = None,
) -> Tensor:
    """[N, hidden] what the layer makes of the packed row x.

    turn: [N, 1, d / 2] complex rotations; tensors: in the order of `NAMES`.  remake: keep nothing for the backward but
    the input.  rows: what sampling computed of this layer already, taken over instead of forwarded.
    """
    return _Layer.apply(x, turn, plan, shape, remake, rows, *tensors)  # type: ignore[no-any-return,no-untyped-call]
