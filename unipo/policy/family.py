"""The Llama family by structure: which modules a layer must consist of for the hand-written paths to apply.

Names are not trusted alone: whoever uses this also compares numbers with the model's own forward.
"""

from __future__ import annotations

from typing import Any

from torch import nn


class Unfit(Exception):
    """This model does not have the structure; the message says where."""


def check_parts(module: Any, needed: set[str], optional: frozenset[str] | set[str] = frozenset()) -> None:
    """The children of a module must be these and no others, and it may hold no parameters of its own."""
    present = {name for name, _ in module.named_children()}
    odd = (needed - present) | (present - needed - optional)
    if odd:
        raise Unfit(f"{type(module).__name__} differs from the Llama family in {', '.join(sorted(odd))}")
    if next(module.parameters(recurse=False), None) is not None:
        raise Unfit(f"{type(module).__name__} has parameters of its own")


def check_body(body: Any) -> None:
    """A whole backbone: embedding, layers, final norm, rotary embedding."""
    check_parts(body, {"embed_tokens", "layers", "norm", "rotary_emb"})
    if type(body.embed_tokens) is not nn.Embedding:
        raise Unfit(f"the embedding is a {type(body.embed_tokens).__name__}")
    for layer in body.layers:
        check_layer(layer)


def check_layer(layer: Any) -> None:
    """Raise ConfigError, naming what is there, for a decoder layer of another make."""
    check_parts(layer, {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})
    check_parts(layer.self_attn, {"q_proj", "k_proj", "v_proj", "o_proj"}, optional={"q_norm", "k_norm", "rotary_emb"})
    check_parts(layer.mlp, {"gate_proj", "up_proj", "down_proj", "act_fn"})
    for name, linear in linears(layer).items():
        if not isinstance(getattr(linear, "base_layer", linear), nn.Linear):
            raise Unfit(f"{name} is a {type(linear).__name__}")


def linears(layer: Any) -> dict[str, Any]:
    """The seven linear modules of a layer by name; each may be wrapped by an adapter."""
    attention = {name: getattr(layer.self_attn, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    return attention | {name: getattr(layer.mlp, name) for name in ("gate_proj", "up_proj", "down_proj")}
