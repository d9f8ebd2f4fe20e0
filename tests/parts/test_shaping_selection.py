"""Length penalty, KL in the reward, dynamic sampling, overlong filtering, sources."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import batch_of, close

from unipo.errors import ConfigError
from unipo.parts.selection import DropTruncated, DynamicSampling
from unipo.parts.shaping import KLInReward, SoftOverlong, soft_overlong
from unipo.parts.source import Demonstrations, OnPolicy, Preferences


@pytest.mark.parametrize(
    ("limit", "cache", "length", "expected"),
    [
        # DAPO's own: nothing to 16384, then a straight line to -1 at 20480
        (20480, 4096, 16384, 0),
        (20480, 4096, 17408, -0.25),
        (20480, 4096, 18432, -0.5),
        (20480, 4096, 20480, -1),
        (100, 20, 0, 0),
        (100, 20, 80, 0),
        (100, 20, 90, -0.5),
        (100, 20, 100, -1),
        (100, 20, 101, -1),
        (100, 0, 100, 0),
        (100, 0, 101, -1),
    ],
)
def test_the_length_penalty(limit: int, cache: int, length: int, expected: float) -> None:
    assert float(soft_overlong(torch.tensor([length]), limit, cache)) == expected


def test_the_penalty_is_added_to_the_reward_and_defaults_to_a_fifth_of_the_limit() -> None:
    batch = batch_of([4, 9, 10], reward=[1.0, 1.0, -1.0])
    close(SoftOverlong(limit=10)(batch), [1, 0.5, -2])  # cache 2: lengths 9 and 10 cost 1/2 and 1
    close(SoftOverlong(limit=10, strength=0.5)(batch), [1, 0.75, -1.5])
    close(SoftOverlong(limit=10, cache=5)(batch), [1, 0.2, -2], 1e-6)
    for odd in ({"cache": -5}, {"limit": 100, "cache": 200}, {"fraction": 1.2}, {"limit": -1}):
        with pytest.raises(ConfigError, match="SoftOverlong: 0 <= cache <= limit"):
            SoftOverlong(**odd)
    with pytest.raises(ConfigError, match="SoftOverlong: 0 <= cache <= limit"):
        SoftOverlong(cache=20).bound_to(10)
    with pytest.raises(ConfigError, match="SoftOverlong: set limit"):
        SoftOverlong()(batch)


def test_kl_in_the_reward_sums_over_the_policys_own_tokens() -> None:
    # KL: (0.5 - 0.25) + 1.0 = 1.25 without the tool token, and nothing for the empty response
    batch = batch_of(
        [3, 0],
        reward=[1.0, 0.5],
        old_logp=[-0.5, -math.inf, -1.0],
        reference_logp=[-1.0, math.nan, -1.75],
        trainable=[True, False, True],
    )
    close(KLInReward(beta=0.2)(batch), [1 - 0.2 * 1.25, 0.5])
    assert KLInReward(beta=0)(batch).tolist() == [1.0, 0.5]


def test_a_solved_group_of_different_lengths_is_dropped() -> None:
    """The test is on accuracy: with the length term in it, almost every group varies."""
    batch = batch_of([2, 9, 2, 9], [2, 2], score=[1.0, 1.0, 0.0, 1.0], reward=[1.0, 0.2, 0.0, 0.2])
    assert DynamicSampling()(batch).tolist() == [False, True]


def test_the_unscored_do_not_make_a_group_informative() -> None:
    batch = batch_of(
        [1] * 5, [2, 3], score=[1.0, math.nan, 0.0, 1.0, math.nan], scored=[True, False, True, True, False]
    )
    assert DynamicSampling()(batch).tolist() == [False, True]


def test_partial_credit_is_informative_when_it_varies() -> None:
    batch = batch_of([1] * 20, [10, 10], score=[0.1] * 10 + [0.1] * 9 + [0.2])
    assert DynamicSampling()(batch).tolist() == [False, True]


def test_truncated_responses_are_dropped() -> None:
    assert DropTruncated()(batch_of([1, 1], truncated=[True, False])).tolist() == [False, True]


def test_impossible_settings_are_refused() -> None:
    for settings in ({"rounds": -1}, {"when_dry": "wait"}, {"surplus": "sell"}):
        with pytest.raises(ConfigError, match=r"when_dry is train\|fill\|raise"):
            DynamicSampling(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="group_size must be at least 1, got 0"):
        OnPolicy(group_size=0)
    with pytest.raises(ConfigError, match="epochs and minibatches must be at least 1"):
        Demonstrations(epochs=0)


def test_sources_say_what_they_give() -> None:
    assert OnPolicy(group_size=6, epochs=2, minibatches=3).updates == 6
    assert (OnPolicy(group_size=6).group, Demonstrations().group, Preferences().group) == (6, 1, 2)
    assert "preference" in Preferences().adds
    assert {"reward", "scored", "behaviour_logp"} <= set(OnPolicy().adds)
    assert [s.online for s in (OnPolicy(), Demonstrations(), Preferences())] == [True, False, False]
