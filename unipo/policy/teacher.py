"""A teacher that sees another prompt: the same responses after it, and how far the policy is from what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.layout import Layout
from unipo.parts.part import Divergence
from unipo.policy.distribution import divergence, top_divergence
from unipo.policy.head import linear_logp
from unipo.policy.packing import Plan, make_plan

if TYPE_CHECKING:
    from unipo.policy.model import Policy


def edited(batch: Batch, required: Tensor) -> Batch:
    """The responses with required tokens, each after its `teacher_context`; columns context, tokens, required.

    required: [T] bool.  Order is kept, so required tokens come in the same order.  Neighbours of one prompt that
    see the same context share it.
    """
    layout = batch.layout
    alive = (layout.seq_sum(required.to(torch.int64)) > 0).nonzero().flatten()
    rows = batch.with_columns("token", required=required).take_sequences(alive)
    owners = rows.layout.seq_prompt.tolist()
    contexts: list[list[int]] = []
    sizes: list[int] = []
    for i, context in enumerate(rows.teacher_context):
        if context is None:
            raise DataError(f"response {int(alive[i])} of the micro-batch is to be taught, but has no teacher's prompt")
        if i and owners[i] == owners[i - 1] and context == contexts[-1]:
            sizes[-1] += 1
        else:
            contexts.append(context)
            sizes.append(1)
    device = layout.device
    shape = Layout.of(rows.layout.seq_lengths, sizes, [len(c) for c in contexts]).to(device)
    ids = torch.tensor([t for c in contexts for t in c], dtype=batch.context.dtype, device=device)
    return Batch.of(shape, context=ids, tokens=rows.tokens).with_columns("token", required=rows.required)


def divergence_from_teacher(
    policy: Policy, against: Divergence, batch: Batch, required: Tensor, plan: Plan, states: Tensor, logp: Tensor
) -> Tensor:
    """[R] divergence of the policy from its teacher at the required tokens, in the plan's order.

    states: [R, d] hidden states and logp: [R] log-probs of the policy's own pass, with gradient.
    """
    if len(states) == 0:
        return torch.zeros_like(logp)
    own = _whole_output(policy, policy.model)
    with torch.no_grad(), policy.weights(against.weights) as model:
        pieces = edited(batch, required).split_by_tokens(policy.spec.micro_tokens or None)
        shown = torch.cat([policy.read_hidden(model, make_plan(piece, piece.required)) for piece in pieces])
        other = shown[plan.required.argsort().argsort()]  # its rows are in the batch's order
        head = own if against.weights == "policy" else _whole_output(policy, model)
        spec = policy.head_spec(model, against.temperature)
        if against.kind == "sampled":
            taught, _ = linear_logp(other, head, plan.target, spec)
    if against.kind == "sampled":
        tempered = spec.temperature != policy.temperature
        said = linear_logp(states, own, plan.target, spec)[0] if tempered else logp
        return (said - taught).detach() * said
    if 0 < against.top < len(own):  # a smaller vocabulary is whole
        return top_divergence(states, own, other, head, against.top, against.kind, against.beta, spec)
    return divergence(states, own, other, head, against.kind, against.beta, spec)


def _whole_output(policy: Policy, model: nn.Module) -> Tensor:
    """[V, d] output weight of a model without bias, which whole distributions do not carry."""
    weight, bias = policy.output(model)
    if bias is not None:
        raise ConfigError("whole distributions of models whose output layer has a bias are not supported")
    return weight
