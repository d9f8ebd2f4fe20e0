"""Rows that came with the data, beside sampled ones: denominators of their own, and the gate between them."""

from __future__ import annotations

import pytest
import torch

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.average import ConstantNormaliser, ConstantSum, SequenceMean, TokenMean
from unipo.parts.demonstration import DemonstrationGate, OnRows

NAN = float("nan")


def mixed(score: list[list[float]], shown: list[bool]) -> Batch:
    """Groups of sampled one-token responses with these scores (nan: unscored), each followed by a demonstration of two
    tokens where `shown`."""
    marks, lengths, demonstration = [], [], []
    for group, has in zip(score, shown, strict=True):
        marks += [*group, *([NAN] if has else [])]
        lengths += [1] * len(group) + ([2] if has else [])
        demonstration += [False] * len(group) + ([True] if has else [])
    layout = Layout.of(lengths, [len(g) + h for g, h in zip(score, shown, strict=True)])
    values = torch.tensor(marks, dtype=torch.float64)
    return Batch.of(
        layout,
        score=values,
        scored=~values.isnan(),
        demonstration=torch.tensor(demonstration),
        mask=torch.ones(layout.n_tokens, dtype=torch.bool),
    )


def kept(gate: DemonstrationGate, batch: Batch) -> list[list[int]]:
    return [group.int().tolist() for group in gate(batch).split(batch.layout.group_sizes.tolist())]


BATCH = mixed([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]], [True, True, True, True, False])


def test_a_prompt_learns_from_its_demonstration_only_while_it_fails() -> None:
    assert kept(DemonstrationGate(most=0), BATCH) == [[0, 0, 0, 1], *[[1, 1, 1, 0]] * 3, [0, 0, 0]]
    assert kept(DemonstrationGate(most=1), BATCH) == [*[[0, 0, 0, 1]] * 2, *[[1, 1, 1, 0]] * 2, [0, 0, 0]]


def test_the_gate_at_its_ends_is_pure_imitation_or_pure_sampling() -> None:
    assert kept(DemonstrationGate(most=3), BATCH) == [*[[0, 0, 0, 1]] * 4, [0, 0, 0]]
    assert kept(DemonstrationGate(most=-1), BATCH) == [*[[1, 1, 1, 0]] * 4, [1, 1, 1]]


def test_partial_credit_is_not_right_and_the_unscored_are_not_counted() -> None:
    batch = mixed([[0.9, NAN], [1.0, NAN], [NAN, NAN]], [True, True, True])
    assert kept(DemonstrationGate(), batch) == [[0, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert kept(DemonstrationGate(right=0.5), batch) == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_an_average_counts_its_own_rows_only() -> None:
    batch = mixed([[1, 0], [1, 0]], [True, False])  # tokens: s s d d | s s
    assert OnRows(TokenMean(), "sampled").weights(batch).tolist() == [0.25, 0.25, 0, 0, 0.25, 0.25]
    assert OnRows(TokenMean(), "demonstration").weights(batch).tolist() == [0, 0, 0.5, 0.5, 0, 0]
    assert OnRows(SequenceMean(), "demonstration").weights(batch, "sequence").tolist() == [0, 0, 1, 0, 0]
    assert OnRows(ConstantSum(10), "sampled").weights(batch).tolist() == [0.1, 0.1, 0, 0, 0.1, 0.1]


def test_without_rows_of_its_kind_it_weighs_nothing() -> None:
    batch = mixed([[1, 0]], [False])
    assert OnRows(TokenMean(), "demonstration").weights(batch).tolist() == [0, 0]


def test_the_sum_over_a_constant_grows_with_the_batch_where_the_mean_does_not() -> None:
    one, two = mixed([[1, 0]], [False]), mixed([[1, 0], [1, 0]], [False, False])
    assert [float(ConstantSum(8).weights(b).sum()) for b in (one, two)] == [2 / 8, 4 / 8]
    assert [float(ConstantNormaliser(8).weights(b).sum()) for b in (one, two)] == [1 / 8, 1 / 8]


def test_a_length_left_open_is_filled_in_inside() -> None:
    assert OnRows(ConstantSum()).bound_to(7) == OnRows(ConstantSum(7))
    assert OnRows(ConstantSum(3)).bound_to(7) == OnRows(ConstantSum(3))
    with pytest.raises(ConfigError, match="ConstantSum: set length"):
        ConstantSum().weights(mixed([[1]], [False]))


def test_rows_and_gates_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"OnRows.rows is sampled or demonstration, got 'all'"):
        OnRows(TokenMean(), "all")
    with pytest.raises(ConfigError, match="counts right responses"):
        DemonstrationGate(most=-2)
