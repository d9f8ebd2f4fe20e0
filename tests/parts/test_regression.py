"""Reg-GRPO: regression inside a group."""

from __future__ import annotations

import pytest
import torch
from by_hand import DOUBLE, batch_of, central_differences, close, tensor, value_and_gradient
from torch import Tensor

from unipo.batch import Batch
from unipo.check import check_objective
from unipo.errors import ConfigError
from unipo.parts.average import GroupMean
from unipo.parts.objective import ScoreFunction
from unipo.parts.regression import GroupRegression

REWARD = tensor([1.0, 0.0, 0.0, 1.0])
RHO = tensor([0.3, -0.1, 0.05, 0.2])
EXACT = GroupRegression(eps=1e-9)


def group(reward: Tensor = REWARD, rho: Tensor = RHO) -> Batch:
    """Responses of two tokens whose log-ratios sum to rho."""
    old = -torch.arange(1, 2 * len(rho) + 1, dtype=DOUBLE)
    halves = torch.stack([rho - 0.4, torch.full_like(rho, 0.4)], dim=1).flatten()
    advantage = (reward - reward.mean()).repeat_interleave(2)
    return batch_of([2] * len(rho), [len(rho)], old_logp=old, logp=old + halves, advantage=advantage)


def test_the_loss_by_hand_is_two_minus_twice_the_correlation() -> None:
    value, _ = value_and_gradient(EXACT, group())
    close(value, [0.185471], 1e-6)
    correlation = torch.corrcoef(torch.stack([REWARD, RHO]))[0, 1]
    close(value, 2 * (1 - correlation[None]), 1e-9)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.2, -3.0), (5.0, 1.7)])
def test_it_is_zero_for_every_rising_line_and_only_then(scale: float, shift: float) -> None:
    close(EXACT(group(rho=scale * REWARD + shift)), [0.0], 1e-12)
    close(EXACT(group(rho=-scale * REWARD + shift)), [4.0], 1e-9)
    bent = scale * REWARD + shift + tensor([0.05, 0.0, 0.0, 0.0])
    assert float(EXACT(group(rho=bent)).detach()) > 1e-5


def test_scales_and_constants_do_not_matter() -> None:
    """A constant on all log-probs is the partition function."""
    base = EXACT(group())
    close(EXACT(group(rho=3 * RHO + 0.7)), base)
    close(EXACT(group(reward=8 * REWARD - 5)), base)
    batch = group()
    shifted = batch.with_columns(None, logp=batch.logp.detach() + 0.25)
    close(EXACT(shifted), base)


def test_the_gradient_by_differences() -> None:
    part, batch = GroupRegression(eps=0.1), group()

    def loss(logp: Tensor) -> Tensor:
        return part(batch.with_columns(None, logp=logp)).sum()

    close(value_and_gradient(part, batch)[1], central_differences(loss, batch.logp.detach()), 1e-7)


@pytest.mark.parametrize("eps", [0.01, 0.1, 1.0])
def test_at_the_old_policy_it_is_a_policy_gradient(eps: float) -> None:
    """-2/(G eps) sum_i A_i grad rho_i, with standardised A: cosine 1 with REINFORCE."""
    batch = group(rho=torch.zeros(4, dtype=DOUBLE))
    batch = batch.with_columns(None, logp=batch.old_logp.clone().requires_grad_())
    _, gradient = value_and_gradient(GroupRegression(eps=eps), batch)
    standard = (REWARD - REWARD.mean()) / REWARD.std(unbiased=False)
    close(gradient, -2 / (4 * eps) * standard.repeat_interleave(2))
    reinforce = value_and_gradient(ScoreFunction(), batch)[1]
    close(torch.cosine_similarity(gradient, reinforce, dim=0), tensor(1.0))


def test_equal_rewards_give_exactly_nothing_and_nothing_is_computed() -> None:
    batch = group(reward=torch.full((4,), 0.1, dtype=DOUBLE))
    for part in (EXACT, GroupRegression()):
        value, gradient = value_and_gradient(part, batch)
        assert value.tolist() == [0.0]
        assert not bool((gradient != 0).any())
        assert not bool(part.active(batch).any())


def test_responses_without_counted_tokens_are_no_members() -> None:
    batch = group(torch.cat([REWARD, tensor([9.0])]), torch.cat([RHO, tensor([5.0])]))
    mask = torch.ones(10, dtype=torch.bool)
    mask[8:] = False
    advantage = torch.where(mask, batch.advantage, 0.0)
    value, gradient = value_and_gradient(EXACT, batch.with_columns(None, mask=mask, advantage=advantage))
    close(value, [0.185471], 1e-6)
    assert not bool((gradient[8:] != 0).any())


@pytest.mark.parametrize("eps", [0.01, 1.0])
def test_the_objective_passes_the_checker(eps: float) -> None:
    assert check_objective(GroupRegression(eps=eps), average=GroupMean()).passed


def test_a_scale_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="eps must be positive"):
        GroupRegression(eps=0.0)


def test_equal_advantages_of_unequal_lengths_give_exactly_nothing() -> None:
    """The means of one number over 3, 8 and 11 tokens differ by a rounding, which is nothing to regress on."""
    same = -0.4999000199960008
    draw = torch.Generator().manual_seed(0)
    old = torch.rand(22, generator=draw, dtype=torch.float64)
    logp = (old - torch.rand(22, generator=draw, dtype=torch.float64)).requires_grad_()
    batch = batch_of([3, 8, 11], [3], advantage=[same] * 22, old_logp=old).with_columns(None, logp=logp)
    part = GroupRegression()
    assert not bool(part.active(batch).any())
    value = part(batch)
    assert value.tolist() == [0.0]
    (gradient,) = torch.autograd.grad(value.sum(), logp)
    assert not bool((gradient != 0).any())
