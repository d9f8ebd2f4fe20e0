"""Advantages: numbers worked by hand, invariances, and exact expectations over enumerated samples."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from by_hand import batch_of, close, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.advantage import (
    CentredReturn,
    GroupCentred,
    GroupNormalised,
    LeaveOneOut,
    Raw,
    RunningBaseline,
    WhitenedReturn,
    group_centred,
    group_normalised,
    leave_one_out,
    reward_to_go,
    whitened,
)
from unipo.parts.part import Advantage
from unipo.parts.shaping import KLInReward
from unipo.registry import get_method

FOUR = Layout.of([1] * 4, [4])


def test_one_right_of_four_by_hand() -> None:
    reward = tensor([1, 0, 0, 0])  # mean 1/4; squares 9/16 + 3/16 = 3/4; std sqrt(3/4/3) = 1/2 or sqrt(3/4/4) = 0.4330
    close(group_normalised(reward, FOUR, eps=0), [1.5, -0.5, -0.5, -0.5])
    close(group_normalised(reward, FOUR, eps=0, unbiased=False), [math.sqrt(3), *[-1 / math.sqrt(3)] * 3])
    close(group_centred(reward, FOUR), [0.75, -0.25, -0.25, -0.25])
    close(leave_one_out(reward, FOUR), [1, -1 / 3, -1 / 3, -1 / 3])


def test_eps_is_added_to_the_standard_deviation() -> None:
    close(group_normalised(tensor([1, 0, 0, 0]), FOUR, eps=0.25), [1, -1 / 3, -1 / 3, -1 / 3])  # 0.75 / (0.5 + 0.25)


def test_leave_one_out_of_two_is_the_difference() -> None:
    close(leave_one_out(tensor([0.3, 1.1]), Layout.of([1, 1], [2])), [-0.8, 0.8])


@pytest.mark.parametrize("right", [1, 2, 5, 7])
def test_binary_rewards_give_the_odds(right: int) -> None:
    """With pass rate p and the population std: A+ = sqrt((1-p)/p), A- = -sqrt(p/(1-p))."""
    p = right / 8
    reward = tensor([1] * right + [0] * (8 - right))
    value = group_normalised(reward, Layout.of([1] * 8, [8]), eps=0, unbiased=False)
    close(value, [math.sqrt((1 - p) / p)] * right + [-math.sqrt(p / (1 - p))] * (8 - right))
    assert float(value.abs().sum()) == pytest.approx(2 * 8 * math.sqrt(p * (1 - p)))


def test_a_tiny_shaping_term_alone_is_blown_up_by_the_std() -> None:
    """The std trap: one response 0.01 worse than three others has A = -sqrt(3), whatever the 0.01."""
    for size in (0.01, 1e-6):
        value = group_normalised(tensor([0, 0, 0, -size]), FOUR, eps=0, unbiased=False)
        assert float(value[3]) == pytest.approx(-math.sqrt(3))


rewards = st.lists(st.floats(-10, 10, allow_nan=False).map(lambda x: round(x, 3)), min_size=2, max_size=8)


@given(rewards, st.floats(0.5, 20), st.floats(-50, 50))
@settings(max_examples=60, deadline=None)
def test_normalised_is_unmoved_by_scale_and_shift(values: list[float], scale: float, shift: float) -> None:
    layout, reward = Layout.of([1] * len(values), [len(values)]), tensor(values)
    a, b = (group_normalised(r, layout, eps=0) for r in (reward, scale * reward + shift))
    if len(set(values)) > 1:
        close(b, a, 1e-6)
        assert float(a.sum()) == pytest.approx(0, abs=1e-9)


@given(rewards, st.floats(-50, 50))
@settings(max_examples=60, deadline=None)
def test_leave_one_out_is_centred_times_g_over_g_minus_one(values: list[float], shift: float) -> None:
    n = len(values)
    layout, reward = Layout.of([1] * n, [n]), tensor(values)
    close(leave_one_out(reward, layout), group_centred(reward, layout) * n / (n - 1))
    close(leave_one_out(reward + shift, layout), leave_one_out(reward, layout), 1e-9)
    slow = [values[i] - sum(values[:i] + values[i + 1 :]) / (n - 1) for i in range(n)]
    close(leave_one_out(reward, layout), slow)
    assert float(leave_one_out(reward, layout).sum()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("part", [GroupCentred(), GroupNormalised(eps=1e-9), LeaveOneOut()])
def test_equal_rewards_and_lone_scored_responses_get_exactly_zero(part: Advantage) -> None:
    #                          all 0.1            | only one scored
    batch = batch_of(
        [1] * 13,
        [10, 3],
        reward=[0.1] * 10 + [5.0, math.nan, math.nan],
        scored=[True] * 11 + [False] * 2,
    )
    assert part(batch).tolist() == [0.0] * 13


@pytest.mark.parametrize("part", [Raw(), RunningBaseline(), GroupCentred(), GroupNormalised(), LeaveOneOut()])
def test_the_unscored_leave_every_statistic(part: Advantage) -> None:
    with_gap = batch_of([1] * 4, [4], reward=[1.0, math.nan, 0.0, 0.25], scored=[True, False, True, True])
    without = batch_of([1] * 3, [3], reward=[1.0, 0.0, 0.25])
    value = part(with_gap)
    assert float(value[1]) == 0.0
    close(value[[0, 2, 3]], part(without))


def test_the_running_baseline_by_hand() -> None:
    part = RunningBaseline(decay=0.9)
    batch = batch_of([1, 1], reward=[1.0, 0.5])
    assert part(batch).tolist() == [1.0, 0.5]  # before the first update b = 0
    first = part.remember(batch)
    assert first == {"baseline": 0.75}
    held = batch_of([1, 1], reward=[1.0, 0.0])
    later = type(held)(held.layout, held.columns, held.levels, states={part.state_key: first})
    close(part(later), [0.25, -0.75])
    assert part.remember(later)["baseline"] == pytest.approx(0.9 * 0.75 + 0.1 * 0.5)


def test_the_running_baseline_forgets_nothing_when_nothing_is_scored() -> None:
    part = RunningBaseline()
    batch = batch_of([1], reward=[math.nan], scored=[False])
    held = type(batch)(batch.layout, batch.columns, batch.levels, states={part.state_key: {"baseline": 0.3}})
    assert part.remember(held) == {"baseline": 0.3}


# -- exact expectations over every outcome of a three-armed bandit -----------------------------------
THETA, REFERENCE, PRIZE = tensor([0.4, -0.3, 0.1]), tensor([0.4, 0.4, 0.2]).log(), tensor([1.0, 0.2, -0.5])


def expected_gradient(part: Advantage, group: int, reward: Tensor, beta: float = 0.0) -> Tensor:
    """E[(1/G) sum_i A_i grad log pi(a_i)], summed over all 3^G groups of sampled arms."""
    pi = THETA.softmax(0)
    score = torch.eye(3, dtype=torch.float64) - pi  # grad_theta log pi(a), row a
    total = torch.zeros(3, dtype=torch.float64)
    for arms in itertools.product(range(3), repeat=group):
        chosen = torch.tensor(arms)
        batch = batch_of(
            [1] * group, [group], reward=reward[chosen], old_logp=pi.log()[chosen], reference_logp=REFERENCE[chosen]
        )
        batch = batch.with_columns(None, reward=KLInReward(beta=beta)(batch))
        total += pi[chosen].prod() * (part(batch)[:, None] * score[chosen]).mean(0)
    return total


def exact(function: object) -> Tensor:
    theta = THETA.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(theta.softmax(0)), theta)  # type: ignore[operator]
    return gradient


@pytest.mark.parametrize("group", [2, 3])
def test_leave_one_out_is_unbiased_and_centring_shrinks_it(group: int) -> None:
    true = exact(lambda pi: (pi * PRIZE).sum())
    close(expected_gradient(LeaveOneOut(), group, PRIZE), true)
    close(expected_gradient(GroupCentred(), group, PRIZE), true * (group - 1) / group)


def test_a_constant_baseline_and_none_are_unbiased() -> None:
    true = exact(lambda pi: (pi * PRIZE).sum())
    close(expected_gradient(Raw(), 1, PRIZE), true)
    close(expected_gradient(RunningBaseline(), 2, PRIZE), true)


def test_kl_in_the_reward_follows_the_reverse_kl() -> None:
    """RLOO with R = 0: expected gradient - beta grad KL(pi || ref)."""
    true = exact(lambda pi: -0.3 * (pi * (pi.log() - REFERENCE)).sum())
    close(expected_gradient(LeaveOneOut(), 2, torch.zeros(3, dtype=torch.float64), beta=0.3), true)


# -- REINFORCE++ -----------------------------------------------------------------------------------
def test_whitened_returns_by_hand() -> None:
    # token returns 1, 1, 0: mean 2/3, squares (1/9 + 1/9 + 4/9) / 2 = 1/3
    batch = batch_of([2, 1], reward=[1.0, 0.0])
    close(WhitenedReturn(eps=0)(batch), [1 / math.sqrt(3), 1 / math.sqrt(3), -2 / math.sqrt(3)])


def test_the_kl_is_part_of_the_return() -> None:
    # KL rewards -0.5 (0.2, -0.4) = -0.1, 0.2 and R = 1 at the end: returns 1.1, 1.2; and 0 for the other response
    batch = batch_of([2, 1], reward=[1.0, 0.0], old_logp=[-1.0, -1.0, -1.0], reference_logp=[-1.2, -0.6, -1.0])
    expected = whitened(tensor([1.1, 1.2, 0.0]), batch.mask, eps=1e-8)
    close(WhitenedReturn(beta=0.5)(batch), expected)


def test_reward_to_go_passes_over_tool_tokens_without_discount() -> None:
    # gamma 1/2; rewards 1, (tool 100), 2, 8: G = 1 + (2 + 8/2)/2, -, 2 + 8/2, 8
    mask = torch.tensor([True, False, True, True])
    go = reward_to_go(tensor([8]), tensor([1, 100, 2, 0]), Layout.of([4]), mask, gamma=0.5)
    assert go.tolist() == [4, 0, 6, 8]


def test_the_reward_sits_on_the_last_counted_token() -> None:
    mask = torch.tensor([True, True, False, False])
    go = reward_to_go(tensor([1, 7]), tensor([0, 0, 0, 0]), Layout.of([3, 1]), mask, gamma=0.5)
    assert go.tolist() == [0.5, 1, 0, 0]


def test_discounted_returns_of_long_responses_stay_exact() -> None:
    """gamma^-t of 8000 tokens is beyond float64; the sum must not go that way."""
    n, gamma = 8000, 0.9
    dense = torch.sin(torch.arange(2 * n, dtype=torch.float64))
    layout, mask = Layout.of([n, n]), torch.ones(2 * n, dtype=torch.bool)
    go = reward_to_go(tensor([1, -1]), dense, layout, mask, gamma).tolist()
    for start, last in ((0, 1.0), (n, -1.0)):
        slow = 0.0
        for t in range(start + n - 1, start - 1, -1):
            slow = float(dense[t]) + (last if t == start + n - 1 else 0.0) + gamma * slow
            assert go[t] == pytest.approx(slow, rel=1e-9, abs=1e-12)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_whitened_tokens_have_mean_zero_and_variance_one(lengths: list[int], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    mask = torch.rand(total, generator=draw) > 0.3
    x_t = torch.where(mask, torch.randn(total, generator=draw, dtype=torch.float64), math.nan)
    value = whitened(x_t, mask, eps=0)
    assert value[~mask].tolist() == [0.0] * int((~mask).sum())
    if int(mask.sum()) > 1:
        assert float(value[mask].mean()) == pytest.approx(0, abs=1e-9)
        assert float(value[mask].var()) == pytest.approx(1)


def test_equal_returns_of_the_whole_batch_give_exactly_zero() -> None:
    batch = batch_of([3, 2], reward=[0.1, 0.1])
    assert WhitenedReturn()(batch).tolist() == [0.0] * 5


def test_per_prompt_constants_move_whitening_but_not_leave_one_out() -> None:
    reward, easy = tensor([1, 0, 1, 0]), tensor([5, 5, 0, 0])
    one, two = (batch_of([1] * 4, [2, 2], reward=r) for r in (reward, reward + easy))
    close(LeaveOneOut()(one), LeaveOneOut()(two))
    assert not torch.allclose(WhitenedReturn()(one), WhitenedReturn()(two))
    close(CentredReturn()(one), CentredReturn()(two))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"gamma in \(0, 1\] and beta >= 0, got 0"):
        WhitenedReturn(gamma=0.0)
    with pytest.raises(ConfigError, match=r"unknown KL estimator 'k9'"):
        WhitenedReturn(estimator="k9")


def test_settings_that_no_return_or_baseline_can_have_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"WhitenedReturn: gamma in \(0, 1\] and beta >= 0, got 1\.0, -0\.1"):
        WhitenedReturn(beta=-0.1)
    with pytest.raises(ConfigError, match=r"RunningBaseline\.decay must lie in \[0, 1\), got 1\.1"):
        RunningBaseline(decay=1.1)
    with pytest.raises(ConfigError, match="needs group_size >= 2, got 1"):
        get_method("reinforce++").but(advantage=CentredReturn())
