"""The discount by likelihood rank."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import batch_of, close

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.advantage import GroupNormalised
from unipo.parts.unlikeliness import Unlikeliness, likelihood_rank, rank_discounted
from unipo.registry import get_method

METHOD = get_method("unlikeliness-reward")
LIKELIHOOD = [-1.0, -0.2, -0.5, -2.0]  # mean token log-probs; ranks 1, 3, 2, 0


def group(reward: list[float], logp: list[float] = LIKELIHOOD, **columns: object) -> Batch:
    """One group of responses of one token each."""
    return batch_of([1] * len(reward), [len(reward)], reward=reward, score=reward, old_logp=logp, **columns)


def advantage(batch: Batch, part: Unlikeliness) -> torch.Tensor:
    return GroupNormalised(eps=1e-6)(batch.with_columns(None, reward=part(batch)))


def test_a_right_answer_earns_less_the_likelier_it_was() -> None:
    # factors 1 - 0.25 (1, 3, 2, 0)/4 = 0.9375, 0.8125, 0.875, 1
    batch = group([1.0, 1.0, 0.0, 1.0])
    close(Unlikeliness()(batch), [0.9375, 0.8125, 0.0, 1.0])
    # mean 0.6875, squares 0.0625 + 0.015625 + 0.47265625 + 0.09765625 = 0.6484375, std sqrt(./3) = 0.46491
    close(advantage(batch, Unlikeliness()), [0.5377, 0.2689, -1.4788, 0.6722], 1e-4)
    close(advantage(batch, Unlikeliness(beta=0)), [0.5, 0.5, -1.5, 0.5], 1e-5)


def test_a_group_that_is_all_right_would_be_pushed_from_its_likeliest_answer_and_is_dropped() -> None:
    batch = group([1.0] * 4)
    close(advantage(batch, Unlikeliness()), [0.3873, -1.1619, -0.3873, 1.1619], 1e-4)
    (selection,) = METHOD.selection
    assert selection(batch).tolist() == [False]
    assert selection(group([0.0] * 4)).tolist() == [False]
    assert selection(group([1.0, 1.0, 0.0, 1.0])).tolist() == [True]


def test_the_papers_form_shifts_the_ranks_by_one() -> None:
    # 1 - 0.25 (rank + 1)/4: the most likely loses 1/4, the least likely 1/16
    close(Unlikeliness(shift=1)(group([1.0, 1.0, 0.0, 1.0])), [0.875, 0.75, 0.0, 0.9375])


def test_ranks_look_at_the_own_group_and_at_scored_responses_only() -> None:
    layout = Layout.of([1] * 7, [3, 4])
    value = torch.tensor([-5.0, -9.0, -1.0, -3.0, math.nan, -2.0, -8.0])
    scored = torch.tensor([True, True, True, True, False, True, True])
    assert likelihood_rank(value, layout, scored).tolist() == [1, 0, 2, 1, 0, 2, 0]
    # the second group counts three: 1 - beta rank / 3
    batch = batch_of([1] * 7, [3, 4], reward=[1.0] * 7, old_logp=value.tolist(), scored=scored.tolist())
    close(Unlikeliness(beta=0.3)(batch), [0.9, 1, 0.8, 0.9, 1, 0.8, 1])


def test_equal_likelihoods_rank_in_the_order_of_the_batch() -> None:
    assert likelihood_rank(torch.zeros(4), Layout.of([1] * 4, [4]), torch.ones(4).bool()).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.99])
def test_every_right_answer_stays_above_every_wrong_one_and_likelier_ones_below(beta: float) -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        logp = (-torch.rand(8, generator=draw)).tolist()
        right = (torch.rand(8, generator=draw) > 0.5).double().tolist()
        reward = Unlikeliness(beta=beta)(group(right, logp)).tolist()
        good = sorted((p, r) for p, r, c in zip(logp, reward, right, strict=True) if c)
        assert all(r > 0 for _, r in good)
        assert all(r == 0 for r, c in zip(reward, right, strict=True) if not c)
        assert [r for _, r in good] == sorted((r for _, r in good), reverse=True)


def test_only_the_order_of_likelihoods_matters_and_not_the_order_of_responses() -> None:
    reward, logp = [1.0, 0.0, 1.0, 1.0, 0.0], [-3.0, -0.4, -0.1, -7.0, -2.0]
    plain = Unlikeliness()(group(reward, logp))
    close(Unlikeliness()(group(reward, [-math.exp(-2 * x) for x in logp])), plain)
    order = [3, 0, 4, 2, 1]
    close(Unlikeliness()(group([reward[i] for i in order], [logp[i] for i in order])), plain[order])


def test_summed_log_probs_rank_long_responses_as_less_likely() -> None:
    # means -1 and -0.6, sums -1 and -1.8: the second is likelier per token, the first as a whole
    batch = batch_of([1, 3], [2], reward=[1.0, 1.0], old_logp=[-1.0, -0.6, -0.6, -0.6])
    close(Unlikeliness(beta=0.5)(batch), [1.0, 0.75])
    close(Unlikeliness(beta=0.5, mean=False)(batch), [0.75, 1.0])


def test_tokens_of_tools_do_not_count_and_no_gradient_flows() -> None:
    logp = torch.tensor([-1.0, -math.inf, -2.0], dtype=torch.float64, requires_grad=True)
    batch = batch_of([2, 1], [2], reward=[1.0, 1.0], old_logp=logp, trainable=[True, False, True])
    reward = Unlikeliness(beta=0.5)(batch)
    close(reward, [0.75, 1.0])
    assert not reward.requires_grad


def test_without_beta_nothing_is_read_and_nothing_changes() -> None:
    batch = group([1.0, 0.5, 0.0, 1.0])
    assert torch.equal(Unlikeliness(beta=0)(batch), batch.reward)
    assert Unlikeliness(beta=0).needs == ("reward",)
    close(rank_discounted(torch.ones(2), torch.tensor([0, 1]), torch.tensor([2, 2]), 0.5), [1.0, 0.75])


def test_impossible_settings_are_refused() -> None:
    for settings in ({"beta": 1.0}, {"beta": -0.1}, {"shift": 2}):
        with pytest.raises(ConfigError, match="0 <= beta < 1 and shift 0 or 1"):
            Unlikeliness(**settings)  # type: ignore[arg-type]
