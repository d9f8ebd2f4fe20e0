"""Generalised advantages: numbers worked out by hand, limits, and what must not leak."""

from __future__ import annotations

import pytest
import torch
from by_hand import batch_of, tensor
from torch import Tensor

from unipo.batch import Batch
from unipo.check import check_advantage
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.advantage import whitened
from unipo.parts.gae import GAE, gae, next_values

VALUES = [0.2, 0.3, 0.5]


def one(lam: float, reward: float = 1.0, gamma: float = 1.0, cut: bool = False, values: list[float] = VALUES) -> Tensor:
    """Advantages of one response."""
    n = len(values)
    goes_on = torch.tensor([cut])
    everything = torch.ones(n, dtype=torch.bool)
    return gae(tensor([reward]), tensor([0.0] * n), tensor(values), Layout.of([n]), everything, gamma, lam, goes_on)


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        (0.95, [0.74125, 0.675, 0.5]),  # deltas .1 .2 .5;  .5;  .2 + .95 .5;  .1 + .95 .675
        (1.0, [0.8, 0.7, 0.5]),  # R - v
        (0.0, [0.1, 0.2, 0.5]),  # the deltas
    ],
)
def test_three_tokens_worked_out_by_hand(lam: float, expected: list[float]) -> None:
    torch.testing.assert_close(one(lam), tensor(expected), rtol=0, atol=1e-12)


def test_gamma_discounts_the_next_value_and_the_sum() -> None:
    # gamma .5, lam 1: d = -.05, -.05, .5;  A_2 = .5, A_1 = -.05 + .25 = .2, A_0 = -.05 + .1 = .05
    torch.testing.assert_close(one(1.0, gamma=0.5), tensor([0.05, 0.2, 0.5]), rtol=0, atol=1e-12)


def test_a_response_that_goes_on_is_followed_by_its_last_value() -> None:
    # deltas .1, .2, 0;  .2;  .1 + .95 .2
    torch.testing.assert_close(one(0.95, cut=True), tensor([0.29, 0.2, 0.0]), rtol=0, atol=1e-12)
    # what a value of 0 after the cut would say: deltas .1, .2, -.5
    wrong = tensor([-0.16125, -0.275, -0.5])
    torch.testing.assert_close(one(0.95, reward=0.0), wrong, rtol=0, atol=1e-12)


def test_at_lambda_one_a_cut_response_gains_the_rise_of_its_value() -> None:
    torch.testing.assert_close(one(1.0, cut=True), 0.5 - tensor(VALUES), rtol=0, atol=1e-12)


def test_a_constant_value_gives_a_cut_response_nothing() -> None:
    assert one(0.95, cut=True, values=[0.4] * 6).abs().max() < 1e-15


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_a_constant_value_at_lambda_one_is_a_baseline(lam: float) -> None:
    got = one(lam, reward=2.0, values=[0.4] * 4)
    expected = tensor([1.6 * lam**k for k in (3, 2, 1, 0)])  # only the last delta is not 0
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_a_tools_tokens_are_passed_over() -> None:
    """Values and rewards at them are not read, and they do not discount: as if they were not there."""
    mask = torch.tensor([True, False, True, False, True, False])
    value = tensor([0.2, float("nan"), 0.3, float("inf"), 0.5, 9.0])
    rewards = tensor([0.0, float("nan"), 0.0, 7.0, 0.0, 5.0])
    got = gae(tensor([1.0]), rewards, value, Layout.of([6]), mask, 0.9, 0.95)
    expected = torch.zeros(6, dtype=torch.float64)
    expected[mask] = one(0.95, gamma=0.9)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def by_loop(batch: Batch, gamma: float, lam: float) -> Tensor:
    """The recursion, token by token, backwards."""
    out = torch.zeros(batch.layout.n_tokens, dtype=torch.float64)
    start = 0
    for s, length in enumerate(batch.layout.seq_lengths.tolist()):
        following, later, reward = 0.0, 0.0, float(batch.reward[s])
        for t in reversed(range(start, start + length)):
            if not batch.mask[t]:
                continue
            delta = reward + float(batch.token_reward[t]) + gamma * following - float(batch.value[t])
            later = delta + gamma * lam * later
            out[t], following, reward = later, float(batch.value[t]), 0.0
        start += length
    return out


@pytest.mark.parametrize("seed", range(4))
def test_ragged_batches_follow_the_recursion(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 20, (7,), generator=draw).tolist()
    n = sum(lengths)
    columns = {k: torch.randn(n, generator=draw, dtype=torch.float64) for k in ("value", "token_reward")}
    reward = torch.randn(7, generator=draw, dtype=torch.float64)
    batch = batch_of(lengths, reward=reward, mask=torch.rand(n, generator=draw) > 0.3, **columns)
    got = GAE(gamma=0.97, lam=0.9, whiten=False)(batch)
    torch.testing.assert_close(got, by_loop(batch, 0.97, 0.9), rtol=0, atol=1e-12)


def test_order_of_responses_changes_nothing() -> None:
    value, reward = tensor([0.2, 0.3, 0.5, 0.1, 0.9]), tensor([1.0, 0.0])
    zeros, all_ = tensor([0.0] * 5), torch.ones(5, dtype=torch.bool)
    first = gae(reward, zeros, value, Layout.of([3, 2]), all_)
    swapped = gae(reward.flip(0), zeros, torch.cat([value[3:], value[:3]]), Layout.of([2, 3]), all_)
    torch.testing.assert_close(swapped, torch.cat([first[3:], first[:3]]), rtol=0, atol=0)


def test_next_values_stay_inside_a_response() -> None:
    got = next_values(tensor([1, 2, 3, 4, 5]), Layout.of([2, 0, 3]), torch.tensor([True, True, True, False, True]))
    assert got.tolist() == [2, 0, 5, 0, 0]


def test_a_reward_shift_that_values_absorbed_changes_nothing_and_whitening_removes_a_common_one() -> None:
    values, shift = tensor(VALUES), 0.7
    zeros, all_, layout = tensor([0.0] * 3), torch.ones(3, dtype=torch.bool), Layout.of([3])
    plain = gae(tensor([1.0]), zeros, values, layout, all_)
    absorbed = gae(tensor([1.0 + shift]), zeros, values + shift, layout, all_)
    torch.testing.assert_close(absorbed, plain, rtol=0, atol=1e-12)
    at_one = gae(tensor([1.0]), zeros, values, layout, all_, lam=1.0)
    moved = gae(tensor([1.0 + shift]), zeros, values, layout, all_, lam=1.0)
    torch.testing.assert_close(whitened(moved, all_), whitened(at_one, all_), rtol=0, atol=1e-12)


def test_whitening_is_over_counted_tokens_with_the_unbiased_variance() -> None:
    batch = batch_of([3], reward=[1.0], value=VALUES, token_reward=[0.0] * 3)
    raw = tensor([0.74125, 0.675, 0.5])
    expected = (raw - raw.mean()) / (raw.var(unbiased=True) + 1e-8).sqrt()
    torch.testing.assert_close(GAE()(batch), expected, rtol=0, atol=1e-12)


def test_no_gradient_reaches_the_values() -> None:
    value = tensor(VALUES).requires_grad_()
    assert not gae(
        tensor([1.0]), tensor([0.0] * 3), value, Layout.of([3]), torch.ones(3, dtype=torch.bool)
    ).requires_grad


@pytest.mark.parametrize(
    "part", [GAE(), GAE(whiten=False, gamma=0.9), GAE(goes_on="truncated"), GAE(goes_on="unfinished"), GAE(lam=1.0)]
)
def test_it_keeps_what_every_advantage_keeps(part: GAE) -> None:
    assert check_advantage(part).passed


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="gamma and lam must lie in"):
        GAE(lam=1.2)
    with pytest.raises(ConfigError, match="unfinished"):
        GAE(goes_on="unfinishd")
