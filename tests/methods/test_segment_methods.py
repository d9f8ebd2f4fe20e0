"""SPO as a method: what its mask leaves."""

from __future__ import annotations

import math

import torch
from bigram import Bigram, random_rollout

from unipo.judge import judge, loss, provide_for_loss, weigh
from unipo.registry import get_method


def test_certain_tokens_teach_nothing() -> None:
    method, policy = get_method("spo-segment").bound_to(6), Bigram(0)
    batch = random_rollout(0, 8)
    sure = batch.with_columns(None, behaviour_logp=torch.full_like(batch.behaviour_logp, math.log(0.95)))
    ready = weigh(method, provide_for_loss(method, judge(method, sure, policy), policy, skip=("logp", "entropy")))
    assert not bool(ready.mask.any())
    total = loss(method, policy.live(ready)).total
    assert float(total.detach()) == 0
    if total.requires_grad:
        assert not bool((torch.autograd.grad(total, policy.theta)[0] != 0).any())
