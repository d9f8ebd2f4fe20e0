"""TW-GRPO's weights of places: distributions by hand, ended responses, and the range of the weights."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import close, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.position import PositionWeight, place_disagreement, position_weight

ONE = torch.tensor([0, 0])


def k3(d: float) -> float:
    return math.exp(d) - d - 1


def disagreement(logp: Tensor, group: int | None = None) -> float:
    place = torch.zeros(len(logp), dtype=torch.int64)
    return float(place_disagreement(logp, place, torch.tensor([group or len(logp)])))


def test_two_distributions_over_two_tokens_by_hand() -> None:
    logp = tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    mean = [(math.log(0.5) + math.log(p)) / 2 for p in (0.9, 0.1)]
    assert mean == pytest.approx([-0.3993, -1.4979], abs=5e-5)
    expected = sum(k3(mean[v] - float(logp[i, v])) for i in range(2) for v in range(2)) / 2
    assert expected == pytest.approx(0.38514, abs=5e-6)
    assert disagreement(logp) == pytest.approx(expected, abs=1e-12)
    assert disagreement(logp.flip(0)) == pytest.approx(expected, abs=1e-12)


def test_a_response_that_has_ended_is_uniform() -> None:
    row = tensor([[0.9, 0.1]]).log()
    both = torch.cat([row, tensor([[0.5, 0.5]]).log()])
    assert disagreement(row, group=2) == pytest.approx(disagreement(both), abs=1e-12)
    three = torch.cat([both, tensor([[0.5, 0.5]]).log()])
    assert disagreement(row, group=3) == pytest.approx(disagreement(three), abs=1e-12)


def test_differences_are_clipped() -> None:
    logp = tensor([[0.0, -40.0], [-40.0, 0.0]])  # means -20, differences -20 and +20, clipped to 11
    assert disagreement(logp) == pytest.approx(k3(11.0) + k3(-11.0))


def test_impossible_tokens_on_both_sides_are_no_difference() -> None:
    logp = torch.tensor([[0.0, -math.inf]] * 2, dtype=torch.float64)
    assert disagreement(logp) == 0


rows = st.lists(st.lists(st.floats(-4, 4), min_size=3, max_size=3), min_size=1, max_size=4)


@given(rows)
@settings(max_examples=60, deadline=None)
def test_disagreement_is_positive_unless_all_are_equal(logits: list[list[float]]) -> None:
    logp = tensor(logits).log_softmax(-1)
    value = disagreement(logp)
    spread = float((logp - logp[0]).abs().max())
    assert value >= 0
    if spread == 0:
        assert value == 0
    if spread > 1e-4:
        assert value > 0


def test_several_places_at_once_are_each_their_own() -> None:
    draw = torch.Generator().manual_seed(0)
    logp = torch.randn(6, 5, generator=draw, dtype=torch.float64).log_softmax(-1)
    place, group = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([3, 3, 4])
    together = place_disagreement(logp, place, group)
    alone = [disagreement(logp[place == k], int(group[k])) for k in range(3)]
    close(together, alone, 1e-12)


# -- weights -----------------------------------------------------------------------------------------------
def test_weights_by_hand() -> None:
    layout = Layout.of([3, 2, 2, 1], [2, 2])
    value = tensor([1.0, 3.0, 2.0, 1.0, 3.0, 5.0, 9.0, 5.0])
    where = torch.ones(8, dtype=torch.bool)
    weight = position_weight(value, layout, where, 1.7)
    close(weight, [1, 1.7, 1.35, 1, 1.7, 1, 1.7, 1], 1e-7)
    where[6] = False  # what does not count neither sets an extreme nor gets a weight
    close(position_weight(value, layout, where, 1.7), [1, 1.7, 1.35, 1, 1.7, 1, 1, 1], 1e-7)


def test_where_nothing_differs_or_alpha_is_one_every_weight_is_exactly_one() -> None:
    layout, where = Layout.of([2, 2], [2]), torch.ones(4, dtype=torch.bool)
    assert position_weight(tensor([0.3] * 4), layout, where, 1.7).tolist() == [1.0] * 4
    assert position_weight(tensor([0.1, 0.9, 0.1, 0.9]), layout, where, 1.0).tolist() == [1.0] * 4


def test_weights_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        PositionWeight(alpha=0.5)
