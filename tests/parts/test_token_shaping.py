"""Rewards of single tokens, and bounds on the response's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from by_hand import batch_of, tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.parts.shaping import KLInReward
from unipo.parts.token_shaping import KLPerToken, MissingEndPenalty, RewardClip, TruncatedReward, adapted_beta


def far(**columns: object) -> Batch:
    given: dict[str, object] = {
        "reward": [1.0, -20.0],
        "token_reward": [0.0, 0.0, 0.5, 0.0],
        "old_logp": [-1.0, -2.0, -1.0, float("-inf")],
        "reference_logp": [-1.5, -1.0, -3.0, float("nan")],
        "mask": [True, True, True, False],
        "truncated": [False, True],
    }
    return batch_of([2, 2], **(given | columns))


def test_each_token_pays_for_its_own_divergence() -> None:
    # d = .5, -1, 2 and a token that does not count
    torch.testing.assert_close(KLPerToken(beta=0.1)(far()), tensor([-0.05, 0.1, 0.3, 0.0]))
    torch.testing.assert_close(KLPerToken(beta=0.1, estimator="k2")(far()), tensor([-0.0125, -0.05, 0.3, 0.0]))


def test_summed_over_a_response_it_is_the_kl_in_the_reward() -> None:
    batch = far(token_reward=[0.0] * 4, trainable=[True, True, True, False])
    per_token = batch.reward + batch.layout.seq_sum(KLPerToken(beta=0.3)(batch))
    torch.testing.assert_close(per_token, KLInReward(beta=0.3)(batch))


def test_without_strength_no_model_is_asked() -> None:
    assert KLPerToken(beta=0.0).needs == ("token_reward",)
    assert torch.equal(KLPerToken(beta=0.0)(far()), far().token_reward)


def test_the_controller_moves_by_at_most_a_fifth_of_n_over_the_horizon() -> None:
    assert adapted_beta(0.1, kl=6.6, target=6.0, responses=100, horizon=1000) == pytest.approx(0.1 * 1.01)
    assert adapted_beta(0.1, kl=60.0, target=6.0, responses=100, horizon=1000) == pytest.approx(0.1 * 1.02)
    assert adapted_beta(0.1, kl=0.0, target=6.0, responses=100, horizon=1000) == pytest.approx(0.1 * 0.98)


def test_an_adaptive_strength_is_remembered_and_used_next() -> None:
    part = KLPerToken(beta=0.1, target=0.5, horizon=10)
    batch = far()
    # KL per response: .5 - 1 = -.5 and 2, mean .75: error clip(.5, .2) -> * (1 + .2 * 2/10)
    state = part.remember(batch)
    assert state["beta"] == pytest.approx(0.104)
    again = replace(batch, states={"kl_per_token": state})
    torch.testing.assert_close(part(again)[2], tensor(0.5 - 0.208))
    assert KLPerToken(beta=0.1).state_key is None
    nothing = far(mask=[False] * 4)
    assert part.remember(nothing) == {"beta": 0.1}


def test_bounds_on_the_reward() -> None:
    batch = far()
    assert TruncatedReward(-1.0)(batch).tolist() == [1.0, -1.0]
    assert MissingEndPenalty(0.5)(batch).tolist() == [1.0, -20.5]
    assert RewardClip()(batch).tolist() == [1.0, -10.0]
    with pytest.raises(ConfigError, match="low <= high"):
        RewardClip(1.0, 0.0)
    with pytest.raises(ConfigError, match="horizon >= 1"):
        KLPerToken(horizon=0)
