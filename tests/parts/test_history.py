"""Rewards measured against the best that was seen for the same prompt: lengths (HAPO) and tool calls (OTC)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from by_hand import batch_of, close

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.layout import Layout
from unipo.parts.advantage import GroupNormalised
from unipo.parts.history import (
    CallCost,
    CallEfficiency,
    HistoryLength,
    call_cost,
    call_efficiency,
    cosine_length,
    linear_length,
    tool_calls,
)


def answers(
    lengths: Sequence[int],
    right: Sequence[float],
    prompts: Sequence[int] = (0,),
    states: Mapping[str, Any] | None = None,
) -> Batch:
    """Responses of these lengths (end token not counted) to prompts with these numbers, in equal groups."""
    batch = batch_of(
        [n + 1 for n in lengths],
        [len(lengths) // len(prompts)] * len(prompts),
        reward=list(map(float, right)),
        score=list(map(float, right)),
        truncated=[False] * len(lengths),
        prompt_id=torch.tensor(prompts),
    )
    return replace(batch, states=dict(states or {}))


# -- length ------------------------------------------------------------------------------------------
LENGTHS = [0, 250, 500, 750, 1000, 1400, 1500, 2000, 3000]


def test_the_cosine_of_the_length_over_the_record() -> None:
    ratio = torch.tensor(LENGTHS, dtype=torch.float64) / 1000
    yes, no = torch.ones(9).bool(), torch.zeros(9).bool()
    close(cosine_length(ratio, yes), [1, 0.9239, 0.7071, 0.3827, 0, -0.5878, -0.7, -0.7, -0.7], 1e-4)
    close(cosine_length(ratio, no), [0, 0, 0, 0, 0, -0.5878, -0.7071, -1, -1], 1e-4)


def test_the_linear_form() -> None:
    # beyond 1.1 h: -(L - 1.1 h)/h, so 1.4 -> -0.3, 1.5 -> -0.4, 2 -> -0.9 (cut at -0.7 if right), 3 -> -1.9
    ratio = torch.tensor([*LENGTHS, 1050], dtype=torch.float64) / 1000
    close(linear_length(ratio, torch.ones(10).bool()), [1, 0.75, 0.5, 0.25, 0, -0.3, -0.4, -0.7, -0.7, 0])
    close(linear_length(ratio, torch.zeros(10).bool()), [0, 0, 0, 0, 0, -0.3, -0.4, -0.9, -1, 0])


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_right_beats_wrong_by_three_tenths_at_any_length(kind: str) -> None:
    form = cosine_length if kind == "cosine" else linear_length
    ratio = torch.linspace(0, 5, 401, dtype=torch.float64)
    good = 1 + form(ratio, torch.ones_like(ratio).bool())
    bad = form(ratio, torch.zeros_like(ratio).bool())
    assert float(good.min() - bad.max()) == pytest.approx(0.3, abs=1e-12)


def test_the_first_time_only_being_right_counts_and_then_the_shortest_right_answer_is_the_record() -> None:
    part = HistoryLength()
    first = answers([6, 4, 2, 9], [1, 1, 0, 0])
    close(part(first), [1, 1, 0, 0])
    memory = {part.state_key: part.remember(first)}
    assert memory["history_length"] == {"0": [4, 2]}
    # h = 4: L 2, 4, 6, 8 -> cos(pi/4), 0, cos(3 pi/4) = -0.7071 -> -0.7, -0.7; wrong: 0 and -1
    again = answers([2, 4, 6, 8, 2, 8], [1, 1, 1, 1, 0, 0], states=memory)
    close(part(again), [1 + math.sqrt(0.5), 1, 0.3, 0.3, 0, -1])


def test_the_end_token_counts_only_where_there_is_one_and_tools_never() -> None:
    part = HistoryLength()
    batch = batch_of(
        [3, 3, 4], [3], reward=[1.0] * 3, score=[1.0] * 3, truncated=[False, True, False], prompt_id=torch.tensor([5]),
        trainable=[True] * 6 + [True, False, False, True],
    )  # fmt: skip
    assert part._lengths(batch).tolist() == [2, 3, 1]
    assert part.remember(batch) == {"5": [1, 3]}


def test_all_responses_of_a_batch_see_the_record_from_before_it_in_any_order() -> None:
    part = HistoryLength()
    states = {part.state_key: {"0": [4, 1], "7": [10, 3]}}
    batch = answers([3, 8, 5, 20], [1, 1, 1, 0], (0, 7), states)
    close(part(batch), [1 + math.cos(math.pi * 3 / 8), 0.3, 1 + math.cos(math.pi / 4), -1])
    swapped = answers([20, 5, 8, 3], [0, 1, 1, 1], (7, 0), states)
    close(part(swapped), part(batch).flip(0))
    assert part.remember(swapped) == part.remember(batch) == {"0": [3, 3], "7": [5, 4]}


def test_a_prompt_that_stands_twice_in_a_batch_sees_the_old_record_twice() -> None:
    part = HistoryLength()
    batch = answers([2, 2, 6, 6], [1, 0, 1, 0], (3, 3), {part.state_key: {"3": [4, 1]}})
    close(part(batch), [1 + math.sqrt(0.5), 0, 0.3, math.cos(math.pi * 3 / 4)])
    assert part.remember(batch) == {"3": [2, 3]}


def test_the_record_never_rises() -> None:
    part, memory = HistoryLength(), {}
    draw = torch.Generator().manual_seed(1)
    records = []
    for _ in range(30):
        lengths = torch.randint(1, 40, (4,), generator=draw).tolist()
        right = (torch.rand(4, generator=draw) > 0.5).double().tolist()
        memory = dict(part.remember(answers(lengths, right, states={part.state_key: memory})))
        records += [memory["0"][0]] if "0" in memory else []
    assert records == sorted(records, reverse=True)
    assert len(set(records)) > 1


def test_the_mean_record_is_the_mean_of_all_right_lengths() -> None:
    part = HistoryLength(record="mean")
    one = part.remember(answers([6, 4, 2], [1, 1, 0]))
    two = part.remember(answers([2, 9, 9], [1, 0, 0], states={part.state_key: one}))
    assert two == {"0": [12, 3]}
    close(part(answers([4, 2, 8], [1, 1, 0], states={part.state_key: two})), [1, 1 + math.sqrt(0.5), -1])


def test_only_the_ratio_to_the_record_matters() -> None:
    part = HistoryLength()
    small = part(answers([1, 3, 5, 7], [1, 0, 1, 0], states={part.state_key: {"0": [4, 1]}}))
    large = part(answers([10, 30, 50, 70], [1, 0, 1, 0], states={part.state_key: {"0": [40, 1]}}))
    assert torch.equal(small, large)


def test_without_weight_the_reward_is_untouched_and_a_record_of_nothing_is_none() -> None:
    batch = answers([2, 4], [1, 0], states={"history_length": {"0": [3, 1]}})
    assert torch.equal(HistoryLength(weight=0)(batch), batch.reward)
    close(HistoryLength()(answers([2, 4], [1, 0], states={"history_length": {"0": [0, 1]}})), [1, 0])


def test_right_answers_of_one_length_give_no_advantage_however_long() -> None:
    part = HistoryLength()
    batch = answers([30, 30], [1, 1], states={part.state_key: {"0": [4, 1]}})
    value = GroupNormalised()(batch.with_columns(None, reward=part(batch)))
    assert value.tolist() == [0, 0]


def test_settings_that_let_a_wrong_answer_win_are_refused() -> None:
    for settings in ({"weight": 1.5}, {"weight": -1}, {"floor": -1.0}, {"tolerance": -0.1}):
        with pytest.raises(ConfigError, match="0 <= weight <= 1"):
            HistoryLength(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        HistoryLength(kind="cosin")
    with pytest.raises(ConfigError, match=r"HistoryLength\.record"):
        HistoryLength(record="median")


# -- tool calls --------------------------------------------------------------------------------------
def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_calls_are_stretches_the_policy_did_not_write() -> None:
    on, off = True, False
    trainable = torch.tensor([on, off, off, on, off, on, off, off, off, on])
    # 1101 0 | 1 0 0 | 0 0 1 would join calls across responses; each response is counted apart
    layout = Layout.of([6, 2, 0, 2], [4])
    assert tool_calls(trainable, layout).tolist() == [2, 1, 0, 1]


def test_the_efficiency_is_one_at_the_fewest_calls_and_falls_on_both_sides() -> None:
    for n in range(7):
        close(call_efficiency(numbers(n), numbers(n), 4.0), [1.0], 1e-15)
    # n = 2: m = 1 -> f = 4/3, sin(pi/3); m = 4 -> f = 8/3, sin(2 pi/3); m = 10 -> f = 10/3, sin(5 pi/6)
    m = numbers(0, 1, 2, 4, 10)
    close(call_efficiency(m, torch.full_like(m, 2), 4.0), [0, math.sqrt(3) / 2, 1, math.sqrt(3) / 2, 0.5])
    close(call_efficiency(numbers(1, 3), numbers(0, 0), 2.0), [math.cos(math.pi / 4), math.cos(3 * math.pi / 8)])
    close(call_efficiency(numbers(3, 12), numbers(6, 6), 4.0)[:1], call_efficiency(numbers(12), numbers(6), 4.0))


@pytest.mark.parametrize("n", [0, 1, 3])
def test_beyond_the_fewest_it_only_falls_and_towards_nothing(n: int) -> None:
    m = torch.arange(n, 400, dtype=torch.float64)
    value = call_efficiency(m, torch.full_like(m, n), 4.0)
    assert bool((value.diff() < 0).all())
    assert float(call_efficiency(numbers(1e9), numbers(n), 4.0)) < 1e-6
    assert bool((call_cost(m, 4.0).diff() < 0).all())


def trajectories(
    calls: Sequence[int], right: Sequence[float], reward: Sequence[float] | None = None, stored: Mapping[str, Any] = {}
) -> Batch:
    """A group whose responses call a tool so many times."""
    trainable = [t for m in calls for t in [True, *[False, True] * m]]
    batch = batch_of(
        [1 + 2 * m for m in calls], [len(calls)], reward=list(map(float, reward or right)), score=list(map(float, right)),
        trainable=trainable, prompt_id=torch.tensor([8]), reward_parts=[{"calls": float(m)} for m in calls],
    )  # fmt: skip
    return replace(batch, states={"fewest_calls": dict(stored)})


def test_right_answers_are_scaled_by_the_fewest_calls_of_a_right_one() -> None:
    part = CallEfficiency()
    # the wrong answer without a call does not set n; n = 2
    batch = trajectories([0, 2, 4, 10, 1], [0, 1, 1, 1, 0])
    close(part(batch), [0, 1, math.sqrt(3) / 2, 0.5, 0])
    assert part.remember(batch) == {"8": 2}
    close(CallEfficiency(calls="calls")(batch), part(batch))


def test_the_stored_fewest_is_lowered_before_the_rewards_and_never_raised() -> None:
    part = CallEfficiency()
    later = trajectories([4, 2], [1, 0], stored={"8": 2})
    close(part(later), [math.sqrt(3) / 2, 0])
    assert part.remember(later) == {"8": 2}
    lower = trajectories([2, 1], [1, 1], stored={"8": 2})
    close(part(lower), [math.sin(2 * math.pi / 3), 1])
    assert part.remember(lower) == {"8": 1}
    alone = CallEfficiency(stored=False)
    assert alone.state_key is None
    close(alone(later), [1, 0])


def test_where_nothing_was_ever_right_the_reward_stays() -> None:
    part = CallEfficiency()
    batch = trajectories([1, 3], [0, 0], reward=[0.1, 0.0])
    close(part(batch), [0.1, 0])
    assert part.remember(batch) == {}


def test_the_advantage_is_highest_nearest_the_fewest_and_zero_where_all_call_alike() -> None:
    def advantage(batch: Batch) -> list[float]:
        value: list[float] = GroupNormalised()(batch.with_columns(None, reward=CallEfficiency()(batch))).tolist()
        return value

    value = advantage(trajectories([6, 3, 1, 4], [1, 1, 1, 1]))
    assert sorted(range(4), key=lambda i: -value[i]) == [2, 1, 3, 0]
    assert advantage(trajectories([3, 3, 3], [1, 1, 1])) == [0, 0, 0]


def test_the_form_for_one_response_per_prompt_needs_no_memory() -> None:
    batch = trajectories([0, 1, 3], [1, 1, 0])
    close(CallCost(smooth=2.0)(batch), [1, math.cos(math.pi / 4), 0])
    assert CallCost().state_key is None


def test_a_reward_that_does_not_count_calls_is_named() -> None:
    batch = trajectories([0, 1], [1, 1])
    with pytest.raises(
        DataError, match=r"response 0 has no whole number of tool calls in the reward's part 'searches'"
    ):
        CallEfficiency(calls="searches")(batch)
    with pytest.raises(ConfigError, match=r"CallEfficiency\.smooth must be positive"):
        CallEfficiency(smooth=0)


def test_a_prompt_that_stands_twice_in_a_batch_has_one_fewest() -> None:
    """Where two passes over the data meet: two calls in one group, one in the other."""
    trainable = [True, False, True, False, True, True, False, True]
    batch = batch_of(
        [5, 3], [1, 1], reward=[1.0, 1.0], score=[1.0, 1.0], trainable=trainable, prompt_id=torch.tensor([8, 8])
    )
    part = CallEfficiency()
    close(part(batch), [math.sin(2 * math.pi / 3), 1])
    assert part.remember(batch) == {"8": 1}
