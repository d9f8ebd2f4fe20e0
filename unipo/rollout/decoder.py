"""The forward pass while decoding: through the model's own layers, or, for the common family, a leaner one."""

from __future__ import annotations

import contextlib
from typing import Protocol

import torch
from torch import Tensor

from unipo.policy.head import HeadSpec
from unipo.policy.model import Policy, head_spec, head_weight
from unipo.rollout.cache import DecodeState, Prefill


class Decoder(Protocol):
    def prefill(self, prefill: Prefill) -> Tensor:
        """Run the contexts of a plan; fills the prefill's keys and values. Returns [N, d] hidden states."""
        ...

    def step(self, token: Tensor, position: Tensor, state: DecodeState) -> Tensor:
        """Forward one token per row. token, position: [R]. Returns [R, d] hidden states."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, d] -> [n, V], float32 or wider, a fresh tensor."""
        ...


class ModelDecoder:
    """Any `transformers` causal language model, through its own layers."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.body = policy.causal.base_model
        self.weight, self.bias = head_weight(policy.causal)
        self.spec: HeadSpec = head_spec(policy.causal.config)
        if policy.spec.compute == "bfloat16":
            self.weight = self.weight.to(torch.bfloat16)
            self.bias = None if self.bias is None else self.bias.to(torch.bfloat16)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return self.policy._autocast()

    def prefill(self, prefill: Prefill) -> Tensor:
        plan = prefill.plan
        with self._autocast():
            out = self.body(
                input_ids=plan.ids[None], position_ids=plan.positions[None], use_cache=False, unipo_plan=prefill
            )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def step(self, token: Tensor, position: Tensor, state: DecodeState) -> Tensor:
        with self._autocast():
            out = self.body(input_ids=token[:, None], position_ids=position[:, None], use_cache=False, unipo_plan=state)
        hidden: Tensor = out.last_hidden_state[:, 0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        z = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        if z.dtype not in (torch.float32, torch.float64):
            z = z.float()
        if self.spec.scale != 1.0:
            z = z * self.spec.scale
        if self.spec.softcap is not None:
            z = self.spec.softcap * torch.tanh(z / self.spec.softcap)
        return z


def decoder_for(policy: Policy) -> Decoder:
    """The fastest decoder that is exact for this model."""
    return ModelDecoder(policy)
