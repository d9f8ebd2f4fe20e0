"""Ranked points against a box: the table of the paper, the form, and what may not be gamed."""

from __future__ import annotations

import json
import math

import pytest

from unipo.errors import RewardError
from unipo.rewards import AdaptiveExploration, Sample, check_reward, resolve_reward
from unipo.rewards.exploration import collinear, exploration_reward, first_list, reasoned

BOX = {"bbox": [10, 10, 20, 20]}
HIT, MISSES = [15, 15], [[0, 0], [1, 7], [50, 3], [4, 90]]


def answer(points, think="look"):
    return f"<think>{think}</think> " + json.dumps([{"point_2d": p} for p in points])


def score(text, row=BOX, **settings):
    return AdaptiveExploration(**settings)([Sample("", text, None, row)])


@pytest.mark.parametrize(
    ("guesses", "rank", "value"),
    [
        (1, 1, 1.0),
        (2, 1, 0.7071),
        (2, 2, 0.5),
        (3, 1, 0.5774),
        (4, 4, 0.25),
        (1, None, -1.0),
        (2, None, -0.5),
        (3, None, -1 / 3),
        (0, None, -1.0),
    ],
)
def test_the_table(guesses, rank, value):
    assert exploration_reward(guesses, rank) == pytest.approx(value, abs=5e-5)


def test_fewer_guesses_and_earlier_hits_are_worth_more_and_any_hit_more_than_any_miss():
    hits = {(n, k): exploration_reward(n, k) for n in range(1, 8) for k in range(1, n + 1)}
    misses = [exploration_reward(n, None) for n in range(1, 8)]
    assert all(hits[n, k] > hits[n + 1, k] for n, k in hits if n < 7)
    assert all(hits[n, k] > hits[n, k + 1] for n, k in hits if k < n)
    assert misses == sorted(misses)
    assert min(hits.values()) > max(misses)


def test_a_second_guess_pays_on_hard_items_only():
    def one(p):
        return p * exploration_reward(1, 1) + (1 - p) * exploration_reward(1, None)

    def two(p):
        return (
            p * exploration_reward(2, 1)
            + (1 - p) * p * exploration_reward(2, 2)
            + (1 - p) ** 2 * exploration_reward(2, None)
        )

    assert (one(0.1), two(0.1)) == pytest.approx((-0.8, -0.289), abs=5e-4)
    assert (one(0.9), two(0.9)) == pytest.approx((0.8, 0.676), abs=5e-4)
    low, high = 0.1, 0.99
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two(middle) > one(middle) else (low, middle)
    assert low == pytest.approx(0.8182, abs=5e-5)


def test_whole_responses():
    assert score(answer([HIT])).total == [2.0]
    assert score(answer([MISSES[0], HIT])).total == [1.5]
    assert score(answer(MISSES[:2])).total == [0.5]
    assert score(answer([])).total == [0.0]  # it parses: 1 - 1
    assert score(answer([HIT, MISSES[0]])).total == pytest.approx([1 + math.sqrt(0.5)])
    assert score(answer([[20, 10]])).total == [2.0]  # borders are inside
    assert score(answer([[20.5, 10]])).total == [0.0]


def test_the_tasks_own_score_is_the_first_point():
    assert score(answer([HIT, MISSES[0]])).score == [1.0]
    assert score(answer([MISSES[0], HIT])).score == [0.0]
    assert score("no form").score == [0.0]
    assert score(answer([MISSES[1], HIT])).extracted == ["[1.0, 7.0]"]


@pytest.mark.parametrize("points", [[HIT, [16, 16], [17, 17]], [HIT, HIT, [0, 3]], [[0, 0], [3, 1], HIT, [6, 2]]])
def test_three_points_on_a_line_are_no_guess_even_if_one_hits(points):
    assert collinear(points)
    assert score(answer(points)).total == [-1.0]


def test_points_off_a_line_are_guesses():
    assert not collinear([(0, 0), (1, 7), (15, 15), (4, 90)])
    assert score(answer([*MISSES[:2], HIT])).total == pytest.approx([1 + 1 / 3])


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([{"point_2d": HIT}]),  # no reasoning
        answer([HIT], think=" "),
        "so " + answer([HIT]),
        answer([HIT]) + "</think>",
        "<think>look</think> ",
        "<think>look</think> 15, 15",
        '<think>look</think> [{"point_2d": [15, 15]',
        '<think>look</think> [{"point": [15, 15]}]',
        '<think>look</think> [{"point_2d": [15]}]',
        '<think>look</think> [{"point_2d": ["15", 15]}]',
        '<think>look</think> [{"point_2d": [NaN, 15]}]',
        "<think>look</think> [[15, 15]]",
        "",
    ],
)
def test_what_has_not_the_form_is_minus_one(text):
    assert score(text).total == [-1.0]


def test_the_reasoning_may_be_waived_or_opened_by_the_prompt():
    bare = json.dumps([{"point_2d": HIT}])
    assert score(bare, think=False).total == [2.0]
    opened = answer([HIT]).removeprefix("<think>")
    assert AdaptiveExploration()([Sample("where?<think>", opened, None, BOX)]).total == [2.0]


def test_the_list_is_the_first_balanced_one():
    assert first_list("at [1, [2]] or [3]") == "[1, [2]]"
    assert first_list("[1, [2]") is None
    assert first_list("none") is None
    assert reasoned("<think>a</think>b") == "b"


def test_the_box_comes_from_the_row_or_the_answer_or_is_missed_loudly():
    text = answer([HIT])
    assert AdaptiveExploration()([Sample("", text, "[10, 10, 20, 20]")]).total == [2.0]
    assert score(text, {"target": [10, 10, 20, 20]}, field="target").total == [2.0]
    for row in ({}, {"bbox": [1, 2, 3]}, {"bbox": [20, 10, 10, 20]}, {"bbox": "10"}):
        with pytest.raises(RewardError, match="field 'bbox' of the data row"):
            score(text, row)


def test_too_many_points_are_no_guess():
    points = [[x, x * x] for x in range(65)]  # on a parabola, no three on a line
    assert not collinear([(x, y) for x, y in points[:20]])
    assert score(answer(points)).total == [-1.0]
    assert score(answer(points[:5]), most=4).total == [-1.0]


def test_it_passes_the_check_of_rewards():
    samples = [Sample("", answer([HIT]), None, BOX), Sample("", answer(MISSES[:2]), None, BOX)]
    check_reward(resolve_reward("exploration"), samples)
