"""Clip-Cov and KL-Cov as methods."""

from __future__ import annotations

import torch
from bigram import Bigram, random_rollout
from torch import Tensor

from unipo.batch import Batch
from unipo.judge import judge, loss, provide_for_loss, weigh
from unipo.method import Method
from unipo.registry import get_method


def gradients(method: Method, drift: float = 0.0) -> tuple[Tensor, Batch]:
    """([T] gradient by logp, the weighed batch) at the first update, or some way from the old policy."""
    policy = Bigram(0)
    batch = provide_for_loss(method, judge(method, random_rollout(0, 8), policy), policy)
    away = torch.randn(policy.theta.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    policy.theta = (policy.theta.detach() + drift * away).requires_grad_()
    live = policy.live(weigh(method, batch, policy))
    return torch.autograd.grad(loss(method, live).total, live.logp)[0], live


UNCLIPPED = get_method("kl-cov").but(regularisers=())


def test_at_the_first_update_kl_cov_is_the_plain_policy_gradient() -> None:
    ours, live = gradients(get_method("kl-cov"))
    assert torch.equal(ours, gradients(UNCLIPPED)[0])
    torch.testing.assert_close(ours, -live.advantage * live.mask / live.mask.sum())


def test_beta_changes_only_the_selected_tokens() -> None:
    one, live = gradients(get_method("kl-cov").but(**{"regularisers.0.share": 0.2}), drift=0.2)
    five, _ = gradients(
        get_method("kl-cov").but(**{"regularisers.0.share": 0.2, "regularisers.0.beta": 5.0}), drift=0.2
    )
    none, _ = gradients(UNCLIPPED, drift=0.2)
    assert torch.equal((one - none) != 0, live.covariance_selected)
    assert torch.equal((five - one) != 0, live.covariance_selected)
    assert int(live.covariance_selected.sum()) == int(0.2 * int(live.mask.sum()))
    zero = get_method("kl-cov").but(**{"regularisers.0.beta": 0.0})
    assert torch.equal(gradients(zero, drift=0.2)[0], none)


def test_clip_cov_drops_tokens_and_keeps_the_denominator() -> None:
    ours, live = gradients(get_method("clip-cov").but(**{"objective.share": 0.1}), drift=0.1)
    whole, _ = gradients(get_method("clip-cov").but(**{"objective.below": 99.0, "objective.above": 98.0}), drift=0.1)
    dropped = live.covariance_dropped
    assert bool(dropped.any())
    assert not bool((ours[dropped] != 0).any())
    assert torch.equal(ours[~dropped], whole[~dropped])
