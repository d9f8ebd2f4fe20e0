"""Tokens drawn anew at every position by the policy's own pass."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from unipo.batch import Batch
from unipo.chance import token_chances
from unipo.errors import ConfigError
from unipo.parts.part import Resampled
from unipo.policy.distribution import candidate_logp, draw_tokens
from unipo.policy.packing import Plan

if TYPE_CHECKING:
    from unipo.policy.model import Policy


def resampled_columns(policy: Policy, wanted: Resampled, batch: Batch, plan: Plan, states: Tensor) -> dict[str, Tensor]:
    """[R] mean log-prob of tokens drawn at each required position, and the share of them that is the target.

    states: [R, d] hidden states of the policy's own pass, with gradient, in the plan's order.
    """
    weight, bias = policy.output(policy.model)
    if bias is not None:
        raise ConfigError("drawing tokens from models whose output layer has a bias is not supported")
    layout, place = batch.layout, plan.required
    samples = batch.sample_id[layout.token_seq[place]]
    chance = token_chances(samples, layout.token_position[place], batch.step, wanted.count)
    spec = policy.head_spec(policy.model)
    drawn = draw_tokens(states, weight, chance, replace(spec, temperature=spec.temperature * wanted.temperature))
    logp = candidate_logp(states, weight, drawn, spec).mean(1)
    return {"resampled_logp": logp, "resampled_hits": (drawn == plan.target[:, None]).to(logp.dtype).mean(1)}
