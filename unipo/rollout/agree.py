"""Does one decoder compute what another does? Compared on a small input, near position 0 and far from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.layout import Layout
from unipo.policy.model import Policy
from unipo.policy.packing import Plan, make_plan
from unipo.rollout.cache import DecodeState, Prefill, first_state
from unipo.rollout.decoder import Decoder, ModelDecoder

_CONTEXTS = (5, 3)
_ROWS = (0, 0, 1)
_STEPS = 2
REACH = max(_CONTEXTS) + _STEPS  # positions that the comparison itself needs


@torch.no_grad()
def largest_difference(policy: Policy, other: Decoder, longest: int) -> tuple[float, str]:
    """(largest difference of logits over the largest logit of the model's own layers, objection to comparing at all).

    The objection names attention that `other` would not see here: soft caps, and windows shorter than `longest`.
    """
    model = ModelDecoder(policy, plain=True)
    worst = 0.0
    longest = max(longest, REACH)
    for offset in sorted({0, longest - REACH}):
        expected, asked = _logits(model, policy, offset)
        softcaps, windows = asked.softcaps - {None}, {w for w in asked.windows if w is not None and w < longest}
        if softcaps or windows:
            return 0.0, f"attention is {'soft-capped' if softcaps else f'windowed to {min(windows)} positions'}"
        got, _ = _logits(other, policy, offset)
        worst = max(worst, float((got - expected).abs().max() / expected.abs().max()))
    return worst, ""


def _logits(decoder: Decoder, policy: Policy, offset: int) -> tuple[Tensor, Prefill]:
    """[N + steps * rows, V] logits of two short prompts, positions from `offset`, and of two more tokens per row."""
    layout = Layout.of([0] * len(_CONTEXTS), [1] * len(_CONTEXTS), list(_CONTEXTS)).to(policy.device)
    embeddings: Any = policy.causal.get_input_embeddings()
    ids = (torch.arange(sum(_CONTEXTS) + len(_ROWS) * _STEPS, device=policy.device) * 7919 + 11) % int(
        embeddings.num_embeddings
    )
    none = ids[:0]
    plan: Plan = make_plan(Batch.of(layout, context=ids[: sum(_CONTEXTS)], tokens=none, trainable=none.bool()))
    prefill = Prefill(replace(plan, positions=plan.positions + offset))
    out = [decoder.logits(decoder.prefill(prefill))]
    state: DecodeState = first_state(prefill, layout, torch.tensor(_ROWS, device=policy.device), room=1)
    state.positions += offset
    for token in ids[sum(_CONTEXTS) :].split(len(_ROWS)):
        state.begin_step()
        out.append(decoder.logits(decoder.step(token, state.positions, state)))
        state.end_step()
    return torch.cat(out), prefill
