"""ADORA: hand-worked weights, the edge cases of both releases, and what a group's weight leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bigram import Bigram, random_rollout
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.judge import judge, loss, provide_for_loss, weigh
from unipo.layout import Layout
from unipo.method import Method
from unipo.parts.advantage import GroupCentred, LeaveOneOut
from unipo.parts.group_weight import LengthAdvantage, longer_when_right
from unipo.registry import get_method

ADORA = get_method("adora")
AMPLIFY = LengthAdvantage(strong=2.0, weak=1.0, difficulty=0.5)


def group(lengths: list[int], right: list[float], scored: list[bool] | None = None, **columns: Any) -> Batch:
    layout = Layout.of(lengths, [len(lengths)])
    return Batch.of(
        layout,
        score=torch.tensor(right, dtype=torch.float64),
        scored=torch.tensor(scored or [True] * len(lengths)),
        truncated=columns.pop("truncated", torch.zeros(len(lengths), dtype=torch.bool)),
        advantage=torch.ones(layout.n_tokens, dtype=torch.float64),
        **columns,
    )


def weight(part: LengthAdvantage, batch: Batch) -> float:
    assert torch.equal(part(batch), part.weights(batch)[batch.layout.token_prompt] * batch.advantage)
    return float(part.weights(batch)[0])


def test_the_weight_by_hand() -> None:
    # longest right 80 > mean wrong 55; half of the group is right
    paid = group([30, 80, 50, 60], [1, 1, 0, 0])
    assert (weight(LengthAdvantage(), paid), weight(AMPLIFY, paid)) == (1.0, 2.0)
    # longest right 40 < mean wrong 55
    short = group([30, 40, 50, 60], [1, 1, 0, 0])
    assert (weight(LengthAdvantage(), short), weight(AMPLIFY, short)) == (0.1, 1.0)
    # three of four right: longer (80 > 60), but no longer difficult
    easy = group([30, 80, 50, 60], [1, 1, 1, 0])
    assert (weight(LengthAdvantage(), easy), weight(AMPLIFY, easy)) == (1.0, 1.0)


def test_a_tie_is_no_advantage() -> None:
    assert weight(LengthAdvantage(), group([55, 50, 60], [1, 0, 0])) == 0.1


def test_only_the_longest_right_response_counts() -> None:
    for shorter in (1, 10, 79):
        assert weight(LengthAdvantage(), group([shorter, 80, 50, 60], [1, 1, 0, 0])) == 1.0


def test_wrong_responses_at_the_limit_leave_the_mean() -> None:
    lengths, right = [52, 50, 60], [1.0, 0.0, 0.0]  # mean wrong 55, or 50 without the one of 60 tokens
    assert weight(LengthAdvantage(), group(lengths, right)) == 0.1
    assert weight(LengthAdvantage(cap=60), group(lengths, right)) == 1.0
    assert weight(LengthAdvantage(cap=61), group(lengths, right)) == 0.1
    cut = torch.tensor([False, False, True])
    assert weight(LengthAdvantage(), group(lengths, right, truncated=cut)) == 1.0


@pytest.mark.parametrize(
    ("lengths", "right", "cap", "llm", "vlm"),
    [
        ([10, 20], [0, 0], 100, 0.1, 1.0),  # no right response
        ([10, 20], [1, 1], 100, 1.0, 0.1),  # no wrong response
        ([10, 200], [1, 0], 100, 1.0, 0.1),  # no usable wrong response
        ([200, 200], [0, 0], 100, 0.1, 1.0),  # neither
    ],
)
def test_the_two_releases_treat_empty_sides_in_opposite_ways(
    lengths: list[int], right: list[float], cap: int, llm: float, vlm: float
) -> None:
    batch = group(lengths, right)
    assert weight(LengthAdvantage(cap=cap, edges="llm"), batch) == llm
    assert weight(LengthAdvantage(cap=cap, edges="vlm"), batch) == vlm


def test_the_unscored_count_on_neither_side() -> None:
    part = LengthAdvantage()
    assert weight(part, group([30, 80, 50, 60], [1, 1, 0, 0], [True, False, True, True])) == 0.1
    assert weight(part, group([52, 50, 60], [1, 0, 0], [True, True, False])) == 1.0


def test_each_group_has_its_own_weight() -> None:
    length, right = torch.tensor([30, 80, 50, 60, 30, 40, 50, 60]), torch.tensor([1, 1, 0, 0] * 2) == 1
    assert longer_when_right(length, right, ~right, Layout.of(length, [4, 4])).tolist() == [True, False]


@pytest.mark.parametrize(
    "change", [{"edges": "both"}, {"weak": -1.0}, {"difficulty": 1.5}, {"cap": -1}], ids=lambda c: next(iter(c))
)
def test_settings_that_mean_nothing_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LengthAdvantage(**change)


# -- in the method -------------------------------------------------------------------------------------
def gradients(method: Method, batch: Batch, prompts: Tensor | None = None) -> Tensor:
    policy = Bigram(3)
    ready = weigh(method, provide_for_loss(method, judge(method, batch, policy), policy, skip=("logp", "entropy")))
    if prompts is not None:
        ready = ready.take_prompts(prompts)
    return torch.autograd.grad(loss(method, policy.live(ready)).total, policy.theta)[0]


@pytest.mark.parametrize("advantage", [ADORA.advantage, GroupCentred(), LeaveOneOut()], ids=lambda a: type(a).__name__)
def test_weight_one_is_the_method_without_it(advantage: Any) -> None:
    batch = random_rollout(0, 16)
    plain = ADORA.but(advantage=advantage, credit=())
    one = ADORA.but(advantage=advantage, credit=(LengthAdvantage(strong=1.0, weak=1.0),))
    assert torch.equal(judge(one, batch, Bigram(0)).advantage, judge(plain, batch, Bigram(0)).advantage)


def test_the_advantages_of_a_group_still_sum_to_zero() -> None:
    batch = random_rollout(1, 16)
    batch = batch.with_columns(None, trainable=torch.ones_like(batch.trainable))
    judged = judge(ADORA, batch, Bigram(0))
    first = judged.layout.seq_starts.clamp(max=judged.layout.n_tokens - 1)
    per_sequence = torch.where(judged.layout.seq_lengths > 0, judged.advantage[first], 0.0)
    # the empty response has no token to carry its share
    empty = judged.layout.seq_lengths == 0
    weights = ADORA.credit[0].weights(judged)  # type: ignore[attr-defined]
    per_sequence = per_sequence + torch.where(empty, judged.sequence_advantage, 0.0) * judged.layout.to_sequences(
        weights
    )
    assert float(judged.layout.group_sum(per_sequence).abs().max()) < 1e-12
    assert set(weights.tolist()) == {0.1, 1.0}


def test_only_the_size_of_a_groups_gradient_changes() -> None:
    method = ADORA.but(regularisers=())
    batch = random_rollout(2, 16)
    weights = LengthAdvantage().weights(judge(method, batch, Bigram(0)))
    assert set(weights.tolist()) == {0.1, 1.0}
    for prompt in range(batch.layout.n_prompts):
        one = torch.arange(batch.layout.n_prompts) == prompt
        whole = gradients(method.but(credit=()), batch, one)
        torch.testing.assert_close(gradients(method, batch, one), whole * weights[prompt], rtol=1e-10, atol=1e-14)
