"""A whole decoder layer of the Llama family as one differentiable function, for the packed row on a CPU.

    h = x + o(attention(norm(x)));   y = h + down(silu(gate(norm(h))) * up(norm(h)))
The same arithmetic as the layer's modules with a backward written by hand: nothing is kept that a pass over memory
can remake (norms, SwiGLU), q/k/v are one product, and the rotary embedding is one complex product, for which the two
halves of each head are interleaved (scores do not change when queries and keys are permuted alike).

`install` puts it into a model's layers only where they are exactly the expected modules and the outputs agree with
the layer's own forward.  Whatever is not plain at call time (adapters, hooks, a window shorter than the row, other
devices) takes the layer's own forward.

Under autocast the products with weights run in its dtype; residuals, norms, rotation and, unlike autocast, attention
in float32, whose backward is the faster one on CPUs measured (and which is what `unipo.rollout.lean` samples with).
"""

from __future__ import annotations

import types
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from unipo.batch import Batch
from unipo.layout import Layout
from unipo.policy.attention import packed_attention, pieces_backward, pieces_forward
from unipo.policy.family import Unfit, check_body, check_layer, linears
from unipo.policy.norm import inverse_rms, norm_eps, normalise, normalise_backward
from unipo.policy.packing import Plan, make_plan
from unipo.policy.products import forward_product, input_gradient, weight_gradient
from unipo.policy.sight import language_model
from unipo.policy.tape import LayerRows, Reading

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOLERANCE = 2e-5  # float64 too: the modules round their norms to float32 there, and the function does not
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


# -- putting it into a model -----------------------------------------------------------------------
def _plain(layer: Any) -> bool:
    """Are the layer's modules still bare: no adapters, no hooks?"""
    for module in _modules(layer):
        if hasattr(module, "base_layer") or module._forward_hooks or module._forward_pre_hooks:
            return False
    return True


def _modules(layer: Any) -> list[nn.Module]:
    attention = layer.self_attn
    norms = [getattr(attention, n) for n in NORMS[2:] if hasattr(attention, n)]
    return [
        attention,
        layer.mlp,
        layer.input_layernorm,
        layer.post_attention_layernorm,
        *norms,
        *linears(layer).values(),
    ]


def _tensors(layer: Any) -> tuple[Tensor | None, ...]:
    modules = linears(layer)
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    heads = tuple(getattr(layer.self_attn, name, None) for name in NORMS[2:])
    return (
        *(modules[name].weight for name in PROJECTIONS),
        *(modules[name].bias for name in PROJECTIONS),
        *(norm.weight for norm in norms),
        *(None if norm is None else norm.weight for norm in heads),
    )


def _complex_turn(plan: Plan, cos: Tensor, sin: Tensor) -> Tensor:
    """[N, 1, d / 2] complex from the rotary tables [1, N, d]; made once for all layers of a pass."""
    key = "layer.turn"
    held = plan.memo.get(key)
    if isinstance(held, tuple) and held[0] is cos:
        return held[1]  # type: ignore[no-any-return]
    half = cos.shape[-1] // 2
    turn = torch.complex(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())[:, None]
    plan.memo[key] = (cos, turn)
    return turn


def _forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    plan, shape, tables = kwargs.get("unipo_plan"), self._unipo_shape, kwargs.get("position_embeddings")
    if not isinstance(plan, Plan) or hidden_states.device.type != "cpu" or tables is None or args:
        return type(self).forward(self, hidden_states, *args, **kwargs)
    if (shape.window is not None and shape.window < plan.longest) or not _plain(self):
        return type(self).forward(self, hidden_states, *args, **kwargs)
    turn = _complex_turn(plan, *tables)
    remake = bool(getattr(self, "gradient_checkpointing", False)) and self.training
    reading = plan.memo.get("tape")
    rows = reading.layer(self.self_attn.layer_idx) if isinstance(reading, Reading) and not remake else None
    return _Layer.apply(hidden_states[0], turn, plan, shape, remake, rows, *_tensors(self))[None]  # type: ignore[no-untyped-call]


def _shape_of(layer: Any) -> LayerShape:
    check_layer(layer)
    attention = layer.self_attn
    d = int(attention.head_dim)
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    heads_norms = [getattr(attention, n) for n in NORMS[2:] if hasattr(attention, n)]
    eps = [norm_eps(norm) for norm in (*norms, *heads_norms)]
    if None in eps or len(heads_norms) == 1 or any(norm.weight.shape != (d,) for norm in heads_norms):
        raise Unfit(f"the norms of {type(layer).__name__} are of another kind")
    if len(set(eps[2:])) > 1:
        raise Unfit("query and key norms differ in epsilon")
    heads, kv = (getattr(attention, name).weight.shape[0] // d for name in ("q_proj", "k_proj"))
    first, second = float(eps[0] or 0), float(eps[1] or 0)
    return LayerShape(heads, kv, d, float(attention.scaling), (first, second), float(eps[2] or 0) if eps[2:] else 0.0)


class _Probe:
    """A plan that notes which attention a layer asks for."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.window: int | None = None
        self.softcap: float | None = None

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: Any, window: Any) -> Tensor:
        self.window, self.softcap = window, softcap
        out, _ = packed_attention(module, q, k, v, None, scaling=scale, softcap=softcap, unipo_plan=self.plan)
        return out


def _tiny_plan() -> Plan:
    layout = Layout.of([3, 2, 4], [2, 1], [3, 2])
    ids = torch.zeros(layout.n_tokens, dtype=torch.int64)
    batch = Batch.of(layout, context=ids[: layout.n_context], tokens=ids, trainable=ids == 0)
    plan = make_plan(batch)
    return replace(plan, positions=plan.positions * 5)  # far enough apart for a wrong rotation to show


@torch.no_grad()
def _checked_shape(layer: Any, body: Any, plan: Plan) -> LayerShape:
    """The layer's shape if the function computes what the layer does; raises Unfit otherwise."""
    shape = _shape_of(layer)
    weight = layer.self_attn.o_proj.weight
    if weight.dtype not in (torch.float32, torch.float64):
        raise Unfit(f"weights in {weight.dtype} cannot be checked closely enough")
    if not torch.allclose(layer.mlp.act_fn(x := torch.linspace(-9, 9, 37)), silu(x), rtol=0, atol=1e-6):
        raise Unfit(f"the MLP's activation is {type(layer.mlp.act_fn).__name__}, not SiLU")
    hidden = layer.input_layernorm.weight.shape[0]
    x = torch.linspace(-2, 2, plan.n_positions * hidden, dtype=weight.dtype).view(1, -1, hidden).sin()
    tables = body.rotary_emb(x, plan.positions[None])
    probe = _Probe(plan)
    expected = type(layer).forward(
        layer, x, attention_mask=None, position_ids=plan.positions[None], position_embeddings=tables, unipo_plan=probe
    )
    if probe.softcap is not None or not isinstance(expected, Tensor) or tables[0].shape[-1] != shape.d:
        raise Unfit(f"{type(layer).__name__} has soft-capped attention, a partial rotation or other outputs")
    w = _Weights(_tensors(layer), shape, weight.dtype)
    turn = _complex_turn(replace(plan), *tables)
    got, _ = _run(x[0], turn, w, plan, weight.dtype)
    difference = float((got - expected[0]).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:
        raise Unfit(f"the hand-written layer differs from {type(layer).__name__} by {difference:.1e} of its size")
    return replace(shape, window=probe.window)


def install(causal: Any) -> str:
    """Put the function into every decoder layer. Returns '' or why the model keeps its own layers."""
    body = language_model(causal)
    if next(causal.parameters()).device.type != "cpu":
        return "the hand-written layer is for CPUs"
    try:
        check_body(body)
        plan = _tiny_plan()
        shapes = [_checked_shape(layer, body, plan) for layer in body.layers if _plain(layer)]
        if len(shapes) != len(body.layers):
            return "the layers carry adapters or hooks"
    except Unfit as reason:
        return str(reason)
    for layer, shape in zip(body.layers, shapes, strict=True):
        layer._unipo_shape = shape
        layer.forward = types.MethodType(_forward, layer)
    return ""
