"""Denominators: who weighs what."""

from __future__ import annotations

import pytest
import torch
from by_hand import batch_of, close

from unipo.errors import ConfigError
from unipo.parts.average import Average, ConstantNormaliser, GroupMean, SequenceMean, SequenceSum, TokenMean
from unipo.parts.objective import ScoreFunction

ALL = [TokenMean(), SequenceMean(), SequenceMean(count="all"), SequenceSum(), ConstantNormaliser(length=4)]


@pytest.mark.parametrize(
    ("average", "expected"),
    [(TokenMean(), 0.1), (SequenceMean(), 0.5), (SequenceSum(), 5.0), (ConstantNormaliser(length=100), 0.05)],
)
def test_ten_ones_and_ninety_zeros(average: Average, expected: float) -> None:
    """One response of 10 tokens with loss 1, one of 90 with loss 0: 10/100, (1+0)/2, 10/2, 10/(2*100)."""
    batch = batch_of([10, 90])
    loss = torch.cat([torch.ones(10), torch.zeros(90)]).double()
    assert float((loss * average.weights(batch)).sum()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        # counted tokens: 2, 0 (masked), 1, 0 (empty)
        (TokenMean(), [1 / 3, 1 / 3, 0, 0, 1 / 3, 0]),
        (SequenceMean(), [1 / 4, 1 / 4, 0, 0, 1 / 2, 0]),
        (SequenceMean(count="all"), [1 / 8, 1 / 8, 0, 0, 1 / 4, 0]),
        (SequenceSum(), [1 / 2, 1 / 2, 0, 0, 1 / 2, 0]),
        (ConstantNormaliser(length=4), [1 / 8, 1 / 8, 0, 0, 1 / 8, 0]),
    ],
)
def test_token_weights_by_hand(average: Average, expected: list[float]) -> None:
    batch = batch_of([2, 2, 2, 0], [2, 2], mask=[True, True, False, False, True, False])
    close(average.weights(batch), expected)
    close(average.weights(batch, "sequence"), [sum(expected[0:2]), sum(expected[2:4]), sum(expected[4:6]), 0])


@pytest.mark.parametrize("average", ALL)
def test_nothing_counted_weighs_nothing(average: Average) -> None:
    batch = batch_of([2, 0], mask=[False, False])
    assert average.weights(batch).tolist() == [0, 0]
    assert average.weights(batch_of([], [])).tolist() == []


def test_group_mean_counts_prompts_with_a_counted_token() -> None:
    batch = batch_of([1, 1, 2, 0, 0, 0], [2, 2, 2], mask=[True, False, True, True])
    close(GroupMean().weights(batch, "prompt"), [0.5, 0.5, 0])


def test_doubling_a_bad_response_halves_its_tokens_under_the_mean_but_not_under_the_constant() -> None:
    """GRPO's length bias, and Dr. GRPO's repair."""
    for average, ratio in ((SequenceMean(), 0.5), (ConstantNormaliser(length=100), 1.0)):
        short, long = (batch_of([2, n], [2], logp=[-1.0] * (2 + n), advantage=[1.0] * 2 + [-1.0] * n) for n in (3, 6))
        gradients = []
        for batch in (short, long):
            loss = (ScoreFunction()(batch) * average.weights(batch)).sum()
            gradients.append(torch.autograd.grad(loss, batch.logp)[0][-1])
        assert float(gradients[1] / gradients[0]) == pytest.approx(ratio)


def test_averages_refuse_units_they_cannot_weigh() -> None:
    batch = batch_of([1])
    with pytest.raises(ConfigError, match=r"TokenMean does not weigh whole prompts; use GroupMean"):
        TokenMean().weights(batch, "prompt")
    with pytest.raises(ConfigError, match=r"GroupMean weighs whole prompts; use TokenMean"):
        GroupMean().weights(batch, "token")
    with pytest.raises(ConfigError, match=r"set length"):
        ConstantNormaliser().weights(batch)
    with pytest.raises(ConfigError, match=r"'nonempty' or 'all', got 'some'"):
        SequenceMean(count="some")
