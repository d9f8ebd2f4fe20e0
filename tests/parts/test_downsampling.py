"""Responses with the widest advantages, tokens with the strongest signal."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from by_hand import batch_of
from hypothesis import given
from hypothesis import strategies as st

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.parts.downsampling import (
    StrongestTokens,
    WidestAdvantages,
    largest_share,
    scheduled,
    widest_subset,
)

POOL = [1.5, -0.5, -0.5, -0.5, 0.577, 0.577, 0.577, -1.732, 0.0, 0.0, 0.0, 0.0]


def variance(values: torch.Tensor) -> float:
    return float(values.var(unbiased=False))


def numbers(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_widest_four_of_twelve() -> None:
    value = numbers(POOL)
    chosen = widest_subset(value, 4)
    assert sorted(value[chosen].tolist()) == [-1.732, -0.5, 0.577, 1.5]
    assert variance(value[chosen]) == pytest.approx(1.4567, abs=1e-4)
    assert variance(value) == pytest.approx(0.5832, abs=1e-4)
    ordered = value.sort().values
    by_k = [variance(torch.cat([ordered[12 - k :], ordered[: 4 - k]])) for k in range(5)]
    assert by_k == pytest.approx([0.2846, 1.3426, 1.4567, 1.4258, 0.1597], abs=1e-4)


@given(st.lists(st.integers(-8, 8), min_size=1, max_size=9), st.integers(0, 9))
def test_no_other_subset_is_wider(values: list[int], size: int) -> None:
    value = numbers([v / 3 for v in values])
    chosen = widest_subset(value, size)
    assert int(chosen.sum()) == min(size, len(values))
    if 0 < size <= len(values):
        best = max(variance(value[list(c)]) for c in itertools.combinations(range(len(values)), size))
        assert variance(value[chosen]) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("size", [2, 5, 9])
def test_shift_scale_and_order_do_not_change_the_choice(size: int) -> None:
    draw = torch.Generator().manual_seed(size)
    for _ in range(20):
        value = torch.randn(12, generator=draw, dtype=torch.float64)
        chosen = widest_subset(value, size)
        assert torch.equal(widest_subset(value + 1000.0, size), chosen)
        assert torch.equal(widest_subset(value * 1e-3, size), chosen)
        order = torch.randperm(12, generator=draw)
        assert torch.equal(widest_subset(value[order], size), chosen[order])


def judged(advantage: list[float], sizes: list[int], **columns: object) -> Batch:
    batch = batch_of([1] * len(advantage), sizes, sequence_advantage=advantage, **columns)
    return replace(batch, step=1, total_steps=1)


def test_over_the_batch_a_prompt_may_give_nothing_and_in_groups_each_gives_its_share() -> None:
    part = WidestAdvantages(first=0.5)
    batch = judged(POOL, [4, 4, 4])
    # half of four is two a prompt: six of twelve, all with an advantage
    across = part(batch)
    assert int(across.sum()) == 6
    assert not bool(across[8:].any())
    within = replace(part, across=False)(batch)
    assert batch.layout.group_count(within).tolist() == [2, 2, 2]
    assert within[:4].tolist() == [True, True, False, False]


def test_the_unscored_are_no_candidates_and_two_of_a_group_are_the_least() -> None:
    scored = [True] * 4 + [False, True, True, True] + [True] * 4
    chosen = WidestAdvantages(first=0.01)(
        judged([9.0 if i == 4 else a for i, a in enumerate(POOL)], [4] * 3, scored=scored)
    )
    assert int(chosen.sum()) == 6
    assert not bool(chosen[4])
    alone = WidestAdvantages(first=0.01)(judged([0.5, 0.1], [1, 1]))
    assert alone.tolist() == [True, True]


def tokens(advantage: list[float], entropy: list[float], step: int = 1, total: int = 1) -> Batch:
    batch = batch_of([len(advantage)], [1], advantage=advantage, behaviour_entropy=entropy)
    return replace(batch, step=step, total_steps=total)


def test_the_strongest_tokens_have_the_largest_advantage_times_entropy() -> None:
    # |A| H = 1, 2, 0, 1.5, 0, 0.5, 1: the top 3 of 7 at 0.4 (ceil 2.8), the first of equals
    batch = tokens([1.0, -1.0, 2.0, -0.5, 0.0, 1.0, 1.0], [1.0, 2.0, 0.0, 3.0, 9.0, 0.5, 1.0])
    assert StrongestTokens(first=0.4)(batch).tolist() == [True, True, False, True, False, False, False]
    assert int(StrongestTokens(first=0.0)(batch).sum()) == 1
    assert StrongestTokens(first=1.0)(batch).tolist() == [True] * 7


def test_below_the_share_of_tokens_with_a_signal_only_such_are_kept() -> None:
    draw = torch.Generator().manual_seed(0)
    advantage = torch.randn(50, generator=draw, dtype=torch.float64) * (torch.rand(50, generator=draw) > 0.5)
    entropy = torch.rand(50, generator=draw, dtype=torch.float64) * (torch.rand(50, generator=draw) > 0.3)
    share = float(((advantage != 0) & (entropy > 0)).double().mean())
    kept = StrongestTokens(first=share)(tokens(advantage.tolist(), entropy.tolist()))
    assert int(kept.sum()) == round(share * 50)
    assert bool((advantage[kept] != 0).all())
    assert bool((entropy[kept] > 0).all())


def test_masked_tokens_are_never_kept_whatever_their_entropy() -> None:
    batch = tokens([1.0, 0.0, 1.0], [0.1, math.inf, 0.2]).with_columns(None, mask=torch.tensor([True, False, True]))
    assert StrongestTokens(first=0.5)(batch).tolist() == [False, False, True]
    assert largest_share(torch.ones(3), torch.zeros(3).bool(), 0.5).tolist() == [False] * 3
    # 0.3 * 10 is 3.0000000000000004 in floating point
    assert int(largest_share(torch.arange(10.0), torch.ones(10).bool(), 0.1 + 0.2).sum()) == 3


def test_budgets_grow_over_the_run() -> None:
    assert [scheduled(0.25, 0.5, step, 5) for step in (1, 3, 5, 9)] == [0.25, 0.375, 0.5, 0.5]
    assert scheduled(0.25, 0.5, 1, 1) == 0.25
    sequences, kept = [], []
    draw = torch.Generator().manual_seed(0)
    advantage = torch.randn(64, generator=draw).tolist()
    for step in range(1, 12):
        batch = replace(judged(advantage, [16] * 4), step=step, total_steps=11)
        sequences.append(int(WidestAdvantages()(batch).sum()))
        kept.append(int(StrongestTokens()(tokens(advantage, [1.0] * 64, step, 11)).sum()))
    assert sequences == sorted(sequences)
    assert (sequences[0], sequences[-1]) == (16, 32)
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (13, 64)


def test_shares_outside_their_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"shares in \(0, 1\]"):
        WidestAdvantages(first=0)
    with pytest.raises(ConfigError, match=r"shares in \[0, 1\]"):
        StrongestTokens(last=1.5)
