"""A decoder for the Llama family with few operations per layer: the same arithmetic without the framework around it.

For Llama, Mistral, Qwen2, Qwen3 and whatever has their structure: RMSNorm, q/k/v/o projections with optional bias,
optional norms on queries and keys, rotary positions, a gated MLP.  What is rearranged, all of it exactly:
  norm weights are multiplied into the projections that follow;
  q, k and v are one matrix, gate and up another; residual sums happen inside the matrix products;
  the two halves of each head are interleaved, so that the rotary embedding is one complex product (scores do not
  change when queries and keys are permuted alike);
  adapters are merged; on a CPU the weights are packed for oneDNN once per `generate`.

A model is decoded this way only if its modules are exactly the expected ones *and* the logits agree with the model's
own forward on a small input, near position 0 and near the longest position of the run; see `decoder_for`.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unipo.errors import ConfigError
from unipo.policy.architecture import head_spec, linear_weight
from unipo.policy.attention import packed_rows, pieces_forward
from unipo.policy.family import Unfit, check_body
from unipo.policy.layer import interleave
from unipo.policy.model import Policy
from unipo.policy.norm import norm_eps
from unipo.policy.sight import embedded, language_model
from unipo.policy.tape import Tape
from unipo.rollout.agree import REACH, largest_difference
from unipo.rollout.cache import DecodeState, LayerCache, Prefill, cache_dtype
from unipo.rollout.decoder import Decoder, ModelDecoder, finish_logits

Activation = Callable[[Tensor], Tensor]
PACKED_FROM = 2**17  # entries of a weight from which oneDNN's packed product beats the plain one


class _Matrix:
    """y = x W^T + b with W packed for the kernel. weight: [out, in]; rows: how many x usually has."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        self.bias = None if bias is None else bias.contiguous()
        # oneDNN reads a packed weight once where MKL copies it first, but each of its calls costs more to set up.
        worth = weight.numel() >= PACKED_FROM and weight.dtype in (torch.float32, torch.bfloat16)
        self.packed = worth and weight.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[attr-defined]
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        else:
            self.weight = weight.t()

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]
        return torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """x W^T + b + other."""
        if other.dtype != x.dtype:
            return other + self(x)
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "add")  # type: ignore[no-any-return]
        y = torch.addmm(other, x, self.weight)
        return y if self.bias is None else y.add_(self.bias)


class _Norm:
    """x / sqrt(mean(x^2) + eps) without its weight, over the last dimension, as x / hypot(|x|, sqrt(n eps)) * sqrt(n).

    The factor sqrt(n) and the norm's own weight are part of what comes after it (`factor`)."""

    def __init__(self, module: Any) -> None:
        weight: Tensor = module.weight.detach()
        size = weight.shape[-1]
        eps = norm_eps(module)
        if eps is None:
            raise Unfit(f"{type(module).__name__} names no epsilon")
        self.factor = weight * math.sqrt(size)
        self.floor = torch.full((), math.sqrt(size * eps), dtype=weight.dtype, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / torch.hypot(length, self.floor)


@dataclass
class _Layer:
    """One decoder layer. heads_norm: for queries and keys, with weight [heads + kv_heads, d] of its own."""

    norm: _Norm
    qkv: _Matrix
    heads_norm: _Norm | None
    heads_weight: Tensor | None
    out: _Matrix
    mlp_norm: _Norm
    gate_up: _Matrix
    down: _Matrix


class LeanDecoder:
    """See the module. Holds merged copies of the weights as they are now; build a new one after an update.

    longest: positions that the rotary tables must hold.  rows: how many rows a step usually has.  compute: dtype of
    the matrix products.  Raises Unfit for a model of another structure.
    """

    name = "lean"

    def __init__(self, policy: Policy, longest: int, rows: int, compute: torch.dtype | None = None) -> None:
        causal: Any = policy.causal
        body = language_model(causal)
        check_body(body)
        self.compute = compute or (torch.bfloat16 if policy.spec.compute == "bfloat16" else body.norm.weight.dtype)
        first = body.layers[0].self_attn
        self.d = int(first.head_dim)
        self.heads, self.kv = (len(linear_weight(x)[0]) // self.d for x in (first.q_proj, first.k_proj))
        self.scale = float(first.scaling)
        self.rows = rows
        self.tape: Tape | None = None
        self.causal = causal
        self.embedding: Tensor = body.embed_tokens.weight.detach()
        self.spec = head_spec(causal.config)
        self.layers = [self._layer(layer) for layer in body.layers]
        self.activation: Activation = body.layers[0].mlp.act_fn
        self.norm = _Norm(body.norm)
        weight, bias = linear_weight(causal.get_output_embeddings())
        self.head = self._matrix([(weight, bias)], self.norm.factor)
        positions = torch.arange(longest, device=self.embedding.device)[None]
        cos, sin = body.rotary_emb(self.embedding[:1, None], positions)
        if cos.shape[-1] != self.d:
            raise Unfit(f"the rotary embedding turns {cos.shape[-1]} of {self.d} dimensions")
        half = self.d // 2
        self.turn = torch.complex(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())  # [longest, d / 2]

    # -- building ----------------------------------------------------------------------------------
    def _layer(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        norm, mlp_norm = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        q, k, v = (linear_weight(getattr(attention, f"{name}_proj")) for name in "qkv")
        q, k = ((interleave(w, self.d), None if b is None else interleave(b, self.d)) for w, b in (q, k))
        heads_norm, heads_weight = self._heads_norm(attention)
        return _Layer(
            norm=norm,
            qkv=self._matrix([q, k, v], norm.factor),
            heads_norm=heads_norm,
            heads_weight=heads_weight,
            out=self._matrix([linear_weight(attention.o_proj)], None),
            mlp_norm=mlp_norm,
            gate_up=self._matrix([linear_weight(mlp.gate_proj), linear_weight(mlp.up_proj)], mlp_norm.factor),
            down=self._matrix([linear_weight(mlp.down_proj)], None),
        )

    def _matrix(self, parts: list[tuple[Tensor, Tensor | None]], factor: Tensor | None) -> _Matrix:
        weight = parts[0][0].detach() if len(parts) == 1 else torch.cat([w.detach() for w, _ in parts])
        if factor is not None:
            weight = weight * factor
        bias = None
        if any(b is not None for _, b in parts):
            bias = torch.cat([w.new_zeros(len(w)) if b is None else b.detach() for w, b in parts]).to(self.compute)
        return _Matrix(weight.to(self.compute), bias, self.rows)

    def _heads_norm(self, attention: Any) -> tuple[_Norm | None, Tensor | None]:
        if not hasattr(attention, "q_norm"):
            return None, None
        q, k = _Norm(attention.q_norm), _Norm(attention.k_norm)
        if q.factor.shape != (self.d,) or k.factor.shape != (self.d,) or not torch.equal(q.floor, k.floor):
            raise Unfit("query and key norms are not over one head")
        of_q, of_k = (interleave(norm.factor, self.d) for norm in (q, k))
        weight = torch.cat([of_q.expand(self.heads, -1), of_k.expand(self.kv, -1)])
        return q, weight

    def record(self, tape: Tape | None) -> bool:
        """Write what is computed to a tape from now on; to none with None. Whether it does."""
        self.tape = tape
        return tape is not None

    # -- running -----------------------------------------------------------------------------------
    def prefill(self, prefill: Prefill) -> Tensor:
        """Hidden states of the packed prompts, whose keys and values are kept."""
        plan = prefill.plan
        turn = self.turn.index_select(0, plan.positions)[:, None]
        x = self.embedding.index_select(0, plan.ids)
        seen = embedded(self.causal, plan, x)
        x = x if seen is None else seen
        n, kept = len(x), cache_dtype(x)
        for number, layer in enumerate(self.layers):
            pairs, v, product = self._project(layer, x)
            turned = torch.view_as_real(pairs * turn).view(n, self.heads + self.kv, self.d)
            q, k = turned.split([self.heads, self.kv], 1)
            prefill.keep(number, k.to(kept), v.to(kept))
            if self.tape is None:
                attended, lse = packed_rows(q, k, v.to(k.dtype), plan, self.scale), None
            else:
                attended, lse = pieces_forward(q, k, v.to(k.dtype), plan, self.scale)
            x = self._finish(number, x, attended.reshape(n, self.heads * self.d), product, lse)
        return x

    def step(self, token: Tensor, position: Tensor, state: DecodeState) -> Tensor:
        """Hidden states of one new token per row."""
        turn = self.turn.index_select(0, position)[:, None]
        x = self.embedding.index_select(0, token)
        rows, group = len(x), self.heads // self.kv
        for number, layer in enumerate(self.layers):
            pairs, v, product = self._project(layer, x)
            q = torch.empty(self.kv, rows, group, self.d, dtype=x.dtype, device=x.device)
            # The product lands where attention wants it: [rows, kv, group] to [kv, rows, group].
            target = torch.view_as_complex(q.view(self.kv, rows, group, -1, 2)).transpose(0, 1)
            source = pairs[:, : self.heads].view(rows, self.kv, group, -1)
            torch.mul(source, turn[:, None], out=target)
            cache = self._write(state, number, pairs[:, self.heads :], turn, v)
            mixed, lse = state.mix(cache, q, self.scale, lse=self.tape is not None)
            lse = None if lse is None else lse.transpose(0, 1).reshape(rows, self.heads)
            x = self._finish(number, x, mixed.transpose(0, 1).reshape(rows, self.heads * self.d), product, lse)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, V] logits of hidden states."""
        return finish_logits(self.head(self.norm(hidden).to(self.compute)), self.spec)

    def _project(self, layer: _Layer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(Normed complex pairs [n, heads + kv, d / 2] of queries and keys, values [n, kv, d], the product itself)."""
        n = len(x)
        product = layer.qkv(layer.norm(x).to(self.compute))
        qkv = product.to(x.dtype).view(n, -1, self.d)
        both, v = qkv[:, : self.heads + self.kv], qkv[:, self.heads + self.kv :]
        if layer.heads_norm is not None and layer.heads_weight is not None:
            both = layer.heads_norm(both).mul_(layer.heads_weight)
        return torch.view_as_complex(both.unflatten(-1, (-1, 2))), v, product

    def _write(self, state: DecodeState, number: int, pairs: Tensor, turn: Tensor, v: Tensor) -> LayerCache:
        """Turn the new keys and put them and the values into the cache. pairs: [R, kv, d / 2]; v: [R, kv, d]."""
        cache = state.layers[number]
        if state.level < 0 or cache.own_k.dtype != v.dtype:
            k = torch.view_as_real(pairs * turn).flatten(-2)
            return state.write(number, k.transpose(0, 1), v.transpose(0, 1))
        place = cache.own_k[:, :, state.level].unflatten(-1, (-1, 2))
        torch.mul(pairs, turn, out=torch.view_as_complex(place).transpose(0, 1))
        cache.own_v[:, :, state.level] = v.transpose(0, 1)
        return cache

    def _finish(self, number: int, x: Tensor, attended: Tensor, qkv: Tensor, lse: Tensor | None) -> Tensor:
        """The rest of a layer after attention. x, result: [n, hidden]; attended: [n, heads * d]; the rest is kept."""
        layer = self.layers[number]
        middle = layer.out.plus(attended.to(self.compute), x)
        gate_up = layer.gate_up(layer.mlp_norm(middle).to(self.compute))
        gate, up = gate_up.chunk(2, -1)
        out = layer.down.plus(self.activation(gate).mul_(up), middle)
        if self.tape is not None and lse is not None:
            self.tape.keep(number, qkv, attended, lse, middle, gate_up, out)
        return out


# -- choosing --------------------------------------------------------------------------------------
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@dataclass
class _Verdict:
    """proven: longest sequence for which the lean decoder is the model.  refused: reason by length."""

    proven: int = 0
    refused: dict[int, str] = field(default_factory=dict)


_verdicts: weakref.WeakKeyDictionary[nn.Module, _Verdict] = weakref.WeakKeyDictionary()


def decoder_for(policy: Policy, longest: int, rows: int) -> Decoder:
    """The lean decoder where it is proven to agree with the model, the model's own layers otherwise.

    longest: positions of the longest sequence to be written.  The check runs at first use and again when a longer
    sequence is asked for; `Decoder.name` says which was taken and why.
    """
    verdict = _verdicts.setdefault(policy.model, _Verdict())
    if longest > verdict.proven and longest not in verdict.refused:
        reason = _objection(policy, longest)
        if reason:
            verdict.refused[longest] = reason
        else:
            verdict.proven = longest
    if longest > verdict.proven:
        return ModelDecoder(policy, verdict.refused[longest])
    try:
        return LeanDecoder(policy, longest, rows)
    except (Unfit, ConfigError) as reason:  # modules were exchanged since the check
        return ModelDecoder(policy, str(reason))


def _objection(policy: Policy, longest: int) -> str:
    """Why the lean decoder must not be used, or '' if its logits are the model's."""
    dtype = next(policy.model.parameters()).dtype
    if dtype not in TOLERANCE:
        return f"weights in {dtype} cannot be checked closely enough"
    try:
        lean = LeanDecoder(policy, max(longest, REACH), rows=4, compute=dtype)
        difference, odd = largest_difference(policy, lean, longest)
    except (Unfit, ConfigError) as reason:
        return str(reason)
    if odd:
        return odd
    if not difference <= TOLERANCE[dtype]:
        return f"the lean logits differ from the model's by {difference:.1e} of their size"
    return ""
