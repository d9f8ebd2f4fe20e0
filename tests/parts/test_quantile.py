"""Bundles of prompts and advantages from quantiles of their scores."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from by_hand import batch_of, central_differences, close, tensor
from torch import Tensor

from unipo.batch import Batch
from unipo.check import check_advantage
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.quantile import (
    BundleRisk,
    ReleasedBundleRisk,
    bundled,
    mixed_value_at_risk,
    released_risk,
)

SCORES = tensor([0, 1, 2, 3, 4, 5])


def groups(*rewards: list[float], **columns: Any) -> Batch:
    """One prompt per list, one token per response."""
    flat = [r for g in rewards for r in g]
    n = len(flat)
    given: dict[str, Any] = {"reward": flat, "sample_id": torch.arange(n)}
    return batch_of([1] * n, [len(g) for g in rewards], **(given | columns))


def test_the_papers_advantage_by_hand() -> None:
    # quantiles 1 and 4, w = 0.5; at S = 0: -1.5 (1 - 0) + 0 - 0 + 1 - 4
    close(mixed_value_at_risk(SCORES, 1.0, 4.0, 0.5), [-4.5, -3, -2, -1, 0, 0])


def test_the_released_advantage_by_hand() -> None:
    low, high = tensor([1.0] * 6), tensor([4.0] * 6)
    shifted = released_risk(SCORES, low, high, (0.2, 0.8), 1.5, True, eps=0.0)
    close(shifted, [-5, -2, -4 / 3, -2 / 3, 0, 0])
    plain = released_risk(SCORES, low, high, (0.2, 0.8), 1.5, False, eps=0.0)
    close(plain, [-3, 0, 2 / 3, 4 / 3, 2, 2])


def test_slopes_are_one_plus_w_then_one_then_zero() -> None:
    def total(score: Tensor) -> Tensor:
        return mixed_value_at_risk(score, 1.0, 4.0, 0.5).sum()

    at = tensor([-2.0, 0.5, 1.5, 3.9, 4.5, 9.0])
    close(central_differences(total, at), [1.5, 1.5, 1, 1, 0, 0], 1e-6)
    assert bool((mixed_value_at_risk(torch.linspace(-9, 9, 50), 1.0, 4.0, 0.5) <= 0).all())


def test_without_tail_weight_and_with_the_extremes_as_quantiles_it_is_the_mean_objective() -> None:
    close(mixed_value_at_risk(SCORES, 0.0, 5.0, 0.0), SCORES - 5)


# -- bundles -------------------------------------------------------------------------------------------
def blocks_of(prompts: int, size: int, even: bool = True) -> list[int]:
    layout = Layout.of([1] * prompts, [1] * prompts)
    made = bundled(torch.arange(prompts), layout, torch.ones(prompts, dtype=torch.bool), size, even)
    return torch.bincount(made.block).tolist()


def test_blocks_are_nearly_equal_and_as_close_to_the_size_as_that_allows() -> None:
    assert blocks_of(10, 5) == [5, 5]
    assert blocks_of(6, 5) == [6]
    assert blocks_of(7, 5) == [7]
    assert blocks_of(8, 5) == [4, 4]
    assert blocks_of(13, 5) == [5, 4, 4]
    assert blocks_of(3, 5) == [3]
    assert blocks_of(7, 5, even=False) == [5, 2]
    assert blocks_of(3, 1) == [1, 1, 1]


def test_every_scored_response_is_used_exactly_once() -> None:
    layout = Layout.of([1] * 12, [3, 4, 2, 3])
    scored = torch.ones(12, dtype=torch.bool)
    scored[4] = False
    made = bundled(torch.arange(12), layout, scored, 2)
    assert made.bundle[4] == -1
    assert made.sum(torch.ones(12)).sum() == 11
    # prompts 0, 1 are a block with bundles of places 0, 1, 2; 2, 3 another, whose last bundle has one member
    assert made.bundle.tolist() == [0, 1, 2, 0, -1, 1, 2, 3, 4, 3, 4, 5]
    assert made.owner.tolist() == [0, 0, 0, 1, 1, 1]


def test_released_bundles_are_as_many_as_the_smallest_group_has_responses() -> None:
    layout = Layout.of([1] * 9, [3, 4, 2])
    made = bundled(torch.arange(9), layout, torch.ones(9, dtype=torch.bool), 2, even=False)
    assert made.bundle.tolist() == [0, 1, 2, 0, 1, 2, -1, 3, 4]


def test_a_prompt_without_scored_responses_joins_no_block() -> None:
    layout = Layout.of([1] * 6, [2, 2, 2])
    scored = torch.tensor([True, True, False, False, True, True])
    for even in (True, False):
        made = bundled(torch.arange(6), layout, scored, 2, even)
        assert made.block.tolist() == [0, -1, 0]
        assert made.bundle.tolist() == [0, 1, -1, -1, 0, 1]


# -- the paper's form ------------------------------------------------------------------------------------
def test_bundle_scores_by_hand() -> None:
    # two prompts, bundles score 1+0, 0+1, 1+1, 0+0; quantiles held at 0.5 and 1.5
    batch = groups([1, 0, 1, 0], [0, 1, 1, 0])
    part = BundleRisk(size=2)
    held = replace(batch, states={part.state_key: {"low": 0.5, "high": 1.5}})
    # S = 1: 0.5 - 0 + 0.5 - 1.5 = -0.5; S = 2: 1.5 - 0.5 - 1 = 0; S = 0: -0.75 - 1 = -1.75
    close(part(held), [-0.5, -0.5, 0, -1.75] * 2)


def test_an_incomplete_bundle_is_put_on_the_scale_of_a_complete_one() -> None:
    part = BundleRisk(size=2)
    state = {part.state_key: {"low": 0.5, "high": 2.0}}
    three = replace(groups([1, 0], [1, 0], [0, 0]), states=state)  # one block of 3? 3/2 rounds to 2 blocks: 2 and 1
    close(part(three), [0, -2.25, 0, -2.25, -2.25, -2.25])
    missing = replace(
        groups([1, 0], [1, math.nan], scored=[True, True, True, False]), states=state
    )  # the second bundle has one member of reward 0
    close(part(missing), [0, -2.25, 0, 0])


def test_the_first_batch_takes_its_own_quantiles_and_later_ones_those_from_before() -> None:
    part = BundleRisk(size=1, low=0.25, high=0.75, rate=0.1)
    first = groups([0.0], [1.0], [2.0], [3.0], [4.0])
    close(part(first), mixed_value_at_risk(first.reward, 1.0, 3.0, 0.5))
    # shares below 1 and 3 are 1/5 and 3/5
    kept = part.remember(first)
    assert kept["low"] == pytest.approx(1 + 0.1 * (0.25 - 0.2))
    assert kept["high"] == pytest.approx(3 + 0.1 * (0.75 - 0.6))
    second = replace(groups([9.0], [9.0]), states={part.state_key: kept})
    assert part(second).tolist() == [0.0, 0.0]
    assert part.remember(second)["low"] == pytest.approx(kept["low"] + 0.1 * 0.25)


def test_constant_scores_teach_with_tracked_quantiles_only() -> None:
    batch = groups([0, 0], [0, 0])
    part = BundleRisk(size=2)
    assert part(batch).tolist() == [0.0] * 4
    close(part(replace(batch, states={part.state_key: {"low": 0.5, "high": 1.5}})), [-1.75] * 4)
    assert ReleasedBundleRisk(size=2)(batch).tolist() == [0.0] * 4


def test_nothing_scored_leaves_advantages_and_memory_alone() -> None:
    part = BundleRisk(size=2)
    batch = groups([math.nan] * 2, scored=[False] * 2)
    held = replace(batch, states={part.state_key: {"low": 0.5, "high": 1.5}})
    assert part(held).tolist() == [0.0, 0.0]
    assert part.remember(held) == {"low": 0.5, "high": 1.5}
    assert ReleasedBundleRisk(size=2)(batch).tolist() == [0.0, 0.0]


def test_the_tracker_finds_the_quantiles_of_uniform_scores() -> None:
    part = BundleRisk(size=1, rate=0.02)
    draw = torch.Generator().manual_seed(0)
    states: dict[str, Any] = {part.state_key: {"low": 0.9, "high": 0.1}}
    tail = []
    for step in range(1500):
        reward = torch.rand(16, generator=draw, dtype=torch.float64)
        batch = replace(groups(*([r] for r in reward.tolist())), states=states)
        states = {part.state_key: part.remember(batch)}
        if step >= 500:
            tail.append((states[part.state_key]["low"], states[part.state_key]["high"]))
    low, high = torch.tensor(tail, dtype=torch.float64).mean(0).tolist()
    assert low == pytest.approx(0.2, abs=0.01)
    assert high == pytest.approx(0.8, abs=0.01)


def test_the_order_within_a_question_leaves_the_expected_gradient_alone() -> None:
    """Summed over every outcome of two questions with two responses each; the second pairs crosswise."""
    theta = tensor([0.3, -0.8])  # logits of being right
    part = BundleRisk(size=2)
    states = {part.state_key: {"low": 0.5, "high": 1.5}}
    right = theta.sigmoid()

    def expected(ids: list[int]) -> Tensor:
        total = torch.zeros(2, dtype=torch.float64)
        for outcome in itertools.product([0.0, 1.0], repeat=4):
            r = tensor(outcome)
            p = torch.stack([right[0], right[0], right[1], right[1]])
            chance = torch.where(r > 0, p, 1 - p).prod()
            batch = replace(groups(list(outcome[:2]), list(outcome[2:]), sample_id=torch.tensor(ids)), states=states)
            score = part(batch) * (r - p)
            total += chance * torch.stack([score[:2].sum(), score[2:].sum()])
        return total

    straight = expected([0, 1, 2, 3])
    close(expected([0, 1, 3, 2]), straight)
    assert float(straight.min()) > 0


def test_with_the_mean_objective_the_expected_gradient_is_that_of_reinforce() -> None:
    """A = S - max and A = S differ by a constant, which adds nothing in expectation."""
    theta = tensor([0.3, -0.8])
    right = theta.sigmoid()
    part = BundleRisk(size=2, weight=0.0)
    states = {part.state_key: {"low": 0.0, "high": 2.0}}
    risk, plain = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for outcome in itertools.product([0.0, 1.0], repeat=2):
        r = tensor(outcome)
        chance = torch.where(r > 0, right, 1 - right).prod()
        batch = replace(groups([outcome[0]], [outcome[1]]), states=states)
        risk += chance * part(batch) * (r - right)
        plain += chance * r.sum() * (r - right)
    close(risk, plain)


# -- the released form ------------------------------------------------------------------------------------
def test_the_released_form_by_hand() -> None:
    # rewards by question; S = 2, 1, 1, 0, 0; quantiles .2 and .9 (linear): 0 and 1.6; std of S: sqrt(2.8/4)
    batch = groups([1, 1, 1, 0, 0], [1, 0, 0, 0, 0])
    s = tensor([2, 1, 1, 0, 0])
    std = math.sqrt(2.8 / 4)
    value = ((s.clamp(max=1.6) - 1.6) / 0.7) / 2.5 / std
    std_q = tensor([math.sqrt(1.2 / 4)] * 5 + [math.sqrt(0.8 / 4)] * 5)
    uniform = ReleasedBundleRisk(size=2, credit="uniform", eps=0.0)(batch)
    close(uniform, torch.cat([value, value]))
    close(ReleasedBundleRisk(size=2, credit="std", eps=0.0)(batch), torch.cat([value, value]) / std_q)
    factor = torch.where(batch.reward > 0, 0.5, 1.5)
    close(ReleasedBundleRisk(size=2, credit="score", eps=0.0)(batch), torch.cat([value, value]) * factor)


def test_sum_mean_shares_out_in_proportion_and_equally_where_it_cannot() -> None:
    # question means 0.5 and 0.5; bundle 0: +.5, +.5 -> halves; bundle 1: -.5, -.5 -> halves
    batch = groups([1, 0], [1, 0])
    part = ReleasedBundleRisk(size=2, credit="sum-mean")
    close(part(batch), ReleasedBundleRisk(size=2, credit="uniform")(batch) / 2)
    # +.75 -.25 = .5: shares 1.5 and -.5; +... the others -.25 + .25 = 0: equal parts; -.25 -.25: halves; -.25 +.25
    uneven = groups([1, 0, 0, 0], [0, 0.5, 0, 0.5])
    whole = ReleasedBundleRisk(size=2, credit="uniform")(uneven)
    close(part(uneven), whole * tensor([1.5, 0.5, 0.5, 0.5, -0.5, 0.5, 0.5, 0.5]))


def test_a_question_without_variance_is_divided_by_one() -> None:
    batch = groups([1, 1, 1], [1, 0, 0])
    std, uniform = (ReleasedBundleRisk(size=2, credit=c)(batch) for c in ("std", "uniform"))
    close(std[:3], uniform[:3], 1e-5)


@pytest.mark.parametrize("credit", ["std", "sum-mean", "uniform", "score"])
def test_the_released_form_keeps_what_every_advantage_keeps(credit: str) -> None:
    assert check_advantage(ReleasedBundleRisk(size=2, credit=credit)).passed


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_papers_form_keeps_what_every_advantage_keeps(size: int) -> None:
    assert check_advantage(BundleRisk(size=size)).passed


@pytest.mark.parametrize(
    "made",
    [
        lambda: BundleRisk(size=0),
        lambda: BundleRisk(low=0.9),
        lambda: BundleRisk(rate=2.0),
        lambda: ReleasedBundleRisk(credit="mean"),
        lambda: ReleasedBundleRisk(low=0.8, high=0.8),
    ],
)
def test_settings_that_mean_nothing_are_refused(made: Any) -> None:
    with pytest.raises(ConfigError):
        made()
