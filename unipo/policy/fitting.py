"""Putting the hand-written layer (`unipo.policy.layer`) into a model, where it computes what the model's own does.

Only layers of exactly the expected modules get it, and only if the outputs agree on a small input.  Whatever is not
plain at call time (adapters, hooks, a window shorter than the row, other devices) takes the layer's own forward.
"""

from __future__ import annotations

import types
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from unipo.batch import Batch
from unipo.layout import Layout
from unipo.policy.attention import packed_attention
from unipo.policy.family import Unfit, check_body, check_layer, linears
from unipo.policy.layer import NORMS, PROJECTIONS, LayerShape, decoder_layer
from unipo.policy.norm import norm_eps
from unipo.policy.packing import Plan, make_plan
from unipo.policy.sight import language_model
from unipo.policy.tape import Reading

TOLERANCE = 2e-5  # float64 too: the modules round their norms to float32 there, and the function does not


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
    return decoder_layer(hidden_states[0], turn, plan, shape, _tensors(self), remake, rows)[None]


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
    got = decoder_layer(x[0], _complex_turn(replace(plan), *tables), plan, shape, _tensors(layer))
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
