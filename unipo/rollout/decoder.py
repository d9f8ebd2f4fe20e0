"""The forward pass while decoding: what a decoder does, and the one that runs any model through its own layers.

`unipo.rollout.lean` holds a leaner one for the Llama family.
"""

from __future__ import annotations

import contextlib
from typing import Protocol

import torch
from torch import Tensor

from unipo.policy.architecture import head_spec, head_weight
from unipo.policy.head import HeadSpec
from unipo.policy.model import Policy
from unipo.policy.sight import embedded, language_model
from unipo.policy.tape import Tape
from unipo.rollout.cache import DecodeState, Prefill


class Decoder(Protocol):
    """Forwards prompts and single tokens. name: what `EngineStats.decoder` reports."""

    name: str

    def record(self, tape: Tape | None) -> bool:
        """Keep what is computed from now on in `tape`. Returns whether this decoder does so."""
        ...

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
    """Any `transformers` causal language model, through its own layers.

    reason: why nothing leaner is used.  plain: compute in the weights' dtype even where the policy uses autocast.
    """

    def __init__(self, policy: Policy, reason: str = "", plain: bool = False) -> None:
        self.name = f"model ({reason})" if reason else "model"
        self.plain = plain
        self.policy = policy
        self.body = language_model(policy.causal)
        self.weight, self.bias = head_weight(policy.causal)
        self.spec: HeadSpec = head_spec(policy.causal.config)
        if policy.spec.compute == "bfloat16" and not plain:
            self.weight = self.weight.to(torch.bfloat16)
            self.bias = None if self.bias is None else self.bias.to(torch.bfloat16)

    def record(self, tape: Tape | None) -> bool:
        """No: what a model computes inside is not kept for the update."""
        return False

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if self.plain else self.policy._autocast()

    def prefill(self, prefill: Prefill) -> Tensor:
        """Hidden states of the packed prompts, whose keys and values are kept."""
        plan = prefill.plan
        with self._autocast():
            seen = embedded(self.policy.causal, plan)
            given = {"input_ids": plan.ids[None]} if seen is None else {"inputs_embeds": seen[None]}
            out = self.body(**given, position_ids=plan.positions[None], use_cache=False, unipo_plan=prefill)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def step(self, token: Tensor, position: Tensor, state: DecodeState) -> Tensor:
        """Hidden states of one new token per row."""
        with self._autocast():
            out = self.body(input_ids=token[:, None], position_ids=position[:, None], use_cache=False, unipo_plan=state)
        hidden: Tensor = out.last_hidden_state[:, 0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[rows, V] logits of hidden states."""
        z = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        return finish_logits(z, self.spec)


def finish_logits(z: Tensor, spec: HeadSpec) -> Tensor:
    """Scale and cap raw logits as the architecture does, in at least float32. z: [n, V], destroyed."""
    z = z if z.dtype in (torch.float32, torch.float64) else z.float()
    if spec.scale != 1.0:
        z = z.mul_(spec.scale)
    if spec.softcap is not None:
        z = z.div_(spec.softcap).tanh_().mul_(spec.softcap)
    return z
