"""Length and repetition terms against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unipo.errors import ConfigError, RewardError
from unipo.rewards import (
    Cosine,
    ExactMatch,
    KimiLength,
    Repetition,
    Sample,
    SoftOverlong,
    cosine,
    kimi_length,
    repetition,
    soft_overlong,
)


@pytest.mark.parametrize(("length", "expected"), [(80, 0.0), (90, -0.5), (100, -1.0), (101, -1.0), (0, 0.0)])
def test_soft_overlong_with_limit_100_and_cache_20(length, expected):
    assert soft_overlong(length, 100, 20) == expected


def test_soft_overlong_without_cache_is_a_hard_step():
    assert soft_overlong(100, 100, 0) == 0.0
    assert soft_overlong(101, 100, 0) == -1.0


def test_soft_overlong_is_continuous_at_both_joints():
    for joint in (80.0, 100.0):
        below, above = soft_overlong(joint - 1e-9, 100, 20), soft_overlong(joint + 1e-9, 100, 20)
        assert below == pytest.approx(above, abs=1e-8)


@given(st.integers(0, 500), st.integers(1, 200), st.data())
def test_soft_overlong_is_bounded_and_never_rises(length, limit, data):
    cache = data.draw(st.integers(0, limit))
    value = soft_overlong(length, limit, cache)
    assert -1.0 <= value <= 0.0
    assert soft_overlong(length + 1, limit, cache) <= value


def test_soft_overlong_settings_that_cannot_work_are_refused():
    for limit, cache in ((100, 101), (100, -1), (-1, 0)):
        with pytest.raises(ConfigError, match="0 <= cache <= limit"):
            SoftOverlong(limit, cache)


def test_kimi_rewards_short_right_answers_and_punishes_long_ones():
    assert kimi_length([10, 20, 30], [True] * 3, "ggg") == [0.5, 0.0, -0.5]


def test_kimi_never_rewards_a_wrong_answer():
    assert kimi_length([10, 20, 30], [False] * 3, "ggg") == [0.0, 0.0, -0.5]


def test_kimi_is_zero_at_equal_lengths():
    assert kimi_length([20, 20, 20], [True, False, True], "ggg") == [0.0, 0.0, 0.0]


def test_kimi_sums_to_zero_only_for_symmetric_lengths():
    assert sum(kimi_length([10, 20, 30], [True] * 3, "ggg")) == 0.0
    # 0.5, 0.5 - 10/90, -0.5
    assert sum(kimi_length([10, 20, 100], [True] * 3, "ggg")) == pytest.approx(0.5 - 10 / 90)


def test_kimi_looks_at_its_own_group_only():
    values = kimi_length([10, 1000, 20, 3000], [True] * 4, "abab")
    assert values == [0.5, 0.5, -0.5, -0.5]


@pytest.mark.parametrize(("length", "right", "wrong"), [(0, 1.0, -1.0), (50, 0.75, -0.75), (100, 0.5, -0.5)])
def test_cosine_with_limit_100(length, right, wrong):
    assert cosine(length, 100, 1.0, 0.5) == pytest.approx(right, abs=1e-12)
    assert cosine(length, 100, -1.0, -0.5) == pytest.approx(wrong, abs=1e-12)


def test_cosine_does_not_pay_again_past_the_limit():
    """Unclamped, length 150 would give 0.75 and -0.75 again."""
    assert cosine(150, 100, 1.0, 0.5) == cosine(100, 100, 1.0, 0.5)
    assert cosine(150, 100, -1.0, -0.5) == cosine(100, 100, -1.0, -0.5)


@pytest.mark.parametrize(
    ("tokens", "n", "expected"),
    [([1, 2, 3, 4], 2, 0.0), ([5] * 5, 2, -0.75), ([1, 2, 1, 2, 1, 2], 2, -0.6), ([1], 2, 0.0), ([], 2, 0.0)],
)
def test_repetition_literals(tokens, n, expected):
    assert repetition(tokens, n) == pytest.approx(expected, abs=1e-12)


def test_a_positive_repetition_penalty_is_refused():
    with pytest.raises(ConfigError, match="pay for looping"):
        repetition([1, 1], 1, 0.5)
    with pytest.raises(ConfigError, match="pay for looping"):
        Repetition(penalty=0.5)
    with pytest.raises(ConfigError, match="n >= 1"):
        Repetition(n=0)


def sample(text: str, length: int, prompt: str = "p", **row) -> Sample:
    return Sample(prompt, text, "yes", row, length=length)


def test_length_rewards_read_tokens_not_characters():
    scores = SoftOverlong(100, 20)([sample("x" * 10_000, 90), sample("x", 101)])
    assert scores.total == [-0.5, -1.0]


def test_a_length_nobody_counted_is_an_error():
    with pytest.raises(RewardError, match=r"Sample\.length in tokens"):
        SoftOverlong(100, 20)([sample("text", 0)])


def test_repetition_reward_counts_words_in_any_case():
    # "a a", "a a", "a b": 2 distinct of 3
    assert Repetition(n=2)([sample("A a a b", 4)]).total == [pytest.approx(-1 / 3)]
    # 好好, 好好 as characters: 1 distinct of 2; as words there is only one word
    assert Repetition(n=2, split="characters")([sample("好好好", 3)]).total == [-0.5]
    assert Repetition(n=2)([sample("好好好", 3)]).total == [0.0]


def test_cosine_reward_replaces_the_task_reward_and_keeps_its_score():
    scores = Cosine(ExactMatch(), 100)([sample("yes", 50), sample("no", 50), Sample("p", "?", None, length=3)])
    assert scores.total == [pytest.approx(0.75), pytest.approx(-0.75), None]
    assert scores.score == [1.0, 0.0, None]
    assert scores.parts["exact"] == [1.0, 0.0, None]
    assert scores.events == {"no_answer": 1}
    assert Cosine(ExactMatch(), 100, past_limit=-10.0)([sample("yes", 101)]).total == [-10.0]


def test_kimi_reward_adds_its_weight_within_the_group():
    made = KimiLength(ExactMatch(), weight=0.5)
    scores = made([sample("yes", 10), sample("no", 30), sample("yes", 20), sample("yes", 5, prompt="another")])
    assert scores.total == [1.25, -0.25, 1.0, 1.0]
    assert scores.parts["kimi"] == [0.5, -0.5, 0.0, 0.0]
    assert scores.score == [1.0, 0.0, 1.0, 1.0]


def test_kimi_reward_leaves_unscored_samples_out_of_the_group():
    unscored = Sample("p", "yes", None, length=1000)
    scores = KimiLength(ExactMatch())([sample("yes", 10), unscored, sample("yes", 20)])
    assert scores.total == [1.5, None, 0.5]


def test_kimi_reward_groups_by_a_field_of_the_row():
    made = KimiLength(ExactMatch(), group="problem")
    scores = made([sample("yes", 10, problem=1), sample("yes", 20, problem=2), sample("yes", 30, problem=1)])
    assert scores.parts["kimi"] == [0.5, 0.0, -0.5]
    with pytest.raises(ConfigError, match="did you mean 'problem'"):
        KimiLength(ExactMatch(), group="problems")([sample("yes", 1, problem=1)])


def test_shaping_alone_makes_advantages_of_order_one_under_std_normalisation():
    """Rewards 0, 0, 0, -0.01: mean -0.0025, population std 0.01 * sqrt(3)/4, so the odd one is at -sqrt(3)."""
    for size in (0.01, 1e-6):
        rewards = [0.0, 0.0, 0.0, -size]
        mean = sum(rewards) / 4
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 4)
        assert (rewards[3] - mean) / std == pytest.approx(-math.sqrt(3))
