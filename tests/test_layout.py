"""Layout: every reduction against a slow loop, the exact zeros, gradients and errors."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unipo.layout import Layout

#   prompt 0: sequences 0 (2 tokens), 1 (0 tokens);  prompt 1: sequence 2 (3 tokens);  contexts of 1 and 2 tokens
SMALL = Layout.of([2, 0, 3], [2, 1], [1, 2])
X_T = torch.tensor([1.0, 2.0, 10.0, 20.0, 30.0], dtype=torch.float64)


@st.composite
def ragged(draw: st.DrawFn) -> tuple[Layout, list[list[list[float]]]]:
    """A layout with its token values as nested lists: prompts of sequences of numbers. Empty sequences included."""
    value = st.floats(-100, 100, allow_nan=False, width=32)
    nested = draw(st.lists(st.lists(st.lists(value, max_size=6), min_size=1, max_size=4), min_size=1, max_size=5))
    context = draw(st.lists(st.integers(0, 3), min_size=len(nested), max_size=len(nested)))
    return Layout.of([len(s) for p in nested for s in p], [len(p) for p in nested], context), nested


def tokens_of(nested: list[list[list[float]]]) -> torch.Tensor:
    return torch.tensor([x for p in nested for s in p for x in s], dtype=torch.float64)


def close(got: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype), rtol=1e-9, atol=1e-9)


def test_sizes_and_maps_of_a_small_layout() -> None:
    assert [SMALL.size(level) for level in ("token", "sequence", "prompt", "context")] == [5, 3, 2, 3]
    assert SMALL.token_seq.tolist() == [0, 0, 2, 2, 2]
    assert SMALL.seq_prompt.tolist() == [0, 0, 1]
    assert SMALL.token_prompt.tolist() == [0, 0, 1, 1, 1]
    assert SMALL.seq_starts.tolist() == [0, 2, 2]
    assert SMALL.group_starts.tolist() == [0, 2]
    assert SMALL.context_starts.tolist() == [0, 1]
    assert SMALL.token_position.tolist() == [0, 1, 0, 1, 2]


def test_reductions_of_a_small_layout() -> None:
    assert SMALL.seq_sum(X_T).tolist() == [3, 0, 60]
    assert SMALL.seq_mean(X_T).tolist() == [1.5, 0, 20]
    assert SMALL.seq_max(X_T).tolist() == [2, -math.inf, 30]
    assert SMALL.seq_count().tolist() == [2, 0, 3]
    assert SMALL.seq_suffix_sum(X_T).tolist() == [3, 2, 60, 50, 30]
    x_s = torch.tensor([1.0, 3.0, 5.0])
    assert SMALL.group_sum(x_s).tolist() == [4, 5]
    assert SMALL.group_mean(x_s).tolist() == [2, 5]
    assert SMALL.group_std(x_s).tolist() == pytest.approx([math.sqrt(2), 0])  # ((1-2)^2 + (3-2)^2) / 1
    assert SMALL.group_std(x_s, unbiased=False).tolist() == pytest.approx([1, 0])
    assert SMALL.to_tokens(x_s).tolist() == [1, 1, 5, 5, 5]
    assert SMALL.to_sequences(torch.tensor([7, 8])).tolist() == [7, 7, 8]


def test_decayed_suffix_sum_of_a_small_layout() -> None:
    # decay 1/2: 1 + 2/2, 2 | 10 + 20/2 + 30/4, 20 + 30/2, 30
    assert SMALL.seq_suffix_sum(X_T, torch.full((5,), 0.5)).tolist() == [2, 2, 27.5, 35, 30]


def test_suffix_sum_of_integers_stays_integer() -> None:
    counts = SMALL.seq_suffix_sum(torch.ones(5, dtype=torch.int64))
    assert counts.dtype == torch.int64
    assert counts.tolist() == [2, 1, 3, 2, 1]


def test_suffix_sum_of_one_sequence_never_reaches_another() -> None:
    x_t = torch.tensor([math.inf, 1e300, 1.0, 2.0, 3.0], dtype=torch.float64)
    assert SMALL.seq_suffix_sum(x_t).tolist()[2:] == [6, 5, 3]


@given(ragged())
@settings(max_examples=60, deadline=None)
def test_token_reductions_equal_loops(case: tuple[Layout, list[list[list[float]]]]) -> None:
    layout, nested = case
    x_t, sequences = tokens_of(nested), [s for p in nested for s in p]
    close(layout.seq_sum(x_t), [math.fsum(s) for s in sequences])
    close(layout.seq_mean(x_t), [math.fsum(s) / len(s) if s else 0.0 for s in sequences])
    close(layout.seq_max(x_t), [max(s) if s else -math.inf for s in sequences])
    close(layout.seq_suffix_sum(x_t), [math.fsum(s[t:]) for s in sequences for t in range(len(s))])
    decayed = [sum(0.9 ** (u - t) * s[u] for u in range(t, len(s))) for s in sequences for t in range(len(s))]
    close(layout.seq_suffix_sum(x_t, torch.full_like(x_t, 0.9)), decayed)


@given(ragged())
@settings(max_examples=60, deadline=None)
def test_group_reductions_equal_loops(case: tuple[Layout, list[list[list[float]]]]) -> None:
    layout, nested = case
    groups = [[math.fsum(s) for s in p] for p in nested]
    x_s = torch.tensor([x for g in groups for x in g], dtype=torch.float64)
    close(layout.group_sum(x_s), [math.fsum(g) for g in groups])
    close(layout.group_mean(x_s), [statistics.fmean(g) for g in groups])
    close(layout.group_max(x_s), [max(g) for g in groups])
    close(layout.group_min(x_s), [min(g) for g in groups])
    close(layout.group_std(x_s), [statistics.stdev(g) if len(set(g)) > 1 else 0.0 for g in groups])
    close(layout.group_std(x_s, unbiased=False), [statistics.pstdev(g) for g in groups])
    assert layout.group_constant(x_s).tolist() == [len(set(g)) == 1 for g in groups]


@given(ragged(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_where_selects_and_never_multiplies(case: tuple[Layout, list[list[list[float]]]], random: object) -> None:
    layout, nested = case
    x_t = tokens_of(nested)
    keep_t = torch.tensor([random.random() < 0.5 for _ in range(layout.n_tokens)], dtype=torch.bool)  # type: ignore[attr-defined]
    keep_s = torch.tensor([random.random() < 0.5 for _ in range(layout.n_sequences)], dtype=torch.bool)  # type: ignore[attr-defined]
    spoiled = torch.where(keep_t, x_t, math.nan)
    kept = [
        [x for x, k in zip(x_t[start : start + n].tolist(), keep_t[start : start + n].tolist(), strict=True) if k]
        for start, n in zip(layout.seq_starts.tolist(), layout.seq_lengths.tolist(), strict=True)
    ]
    close(layout.seq_sum(spoiled, keep_t), [math.fsum(s) for s in kept])
    close(layout.seq_mean(spoiled, keep_t), [math.fsum(s) / len(s) if s else 0.0 for s in kept])
    assert layout.seq_count(keep_t).tolist() == [len(s) for s in kept]
    x_s = layout.seq_sum(x_t)
    spoiled_s = torch.where(keep_s, x_s, math.nan)
    owner = layout.seq_prompt.tolist()
    groups = [
        [x for x, k, o in zip(x_s.tolist(), keep_s.tolist(), owner, strict=True) if k and o == p]
        for p in range(layout.n_prompts)
    ]
    close(layout.group_mean(spoiled_s, keep_s), [statistics.fmean(g) if g else 0.0 for g in groups])
    close(layout.group_std(spoiled_s, keep_s), [statistics.stdev(g) if len(set(g)) > 1 else 0.0 for g in groups])
    close(layout.group_max(spoiled_s, keep_s), [max(g, default=-math.inf) for g in groups])
    assert layout.group_constant(spoiled_s, keep_s).tolist() == [len(set(g)) <= 1 for g in groups]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-20, 7e10])
def test_std_of_equal_rewards_is_exactly_zero(dtype: torch.dtype, value: float) -> None:
    layout = Layout.of([1] * 11, [8, 3])
    std = layout.group_std(torch.full((11,), value, dtype=dtype))
    assert std.tolist() == [0.0, 0.0]


def test_the_mean_of_eight_tenths_is_not_a_tenth() -> None:
    """Why `group_std` compares instead of trusting its arithmetic."""
    layout, rewards = Layout.of([1] * 10, [10]), torch.full((10,), 0.1, dtype=torch.float64)
    assert float(layout.group_mean(rewards)) != 0.1
    assert float(layout.group_std(rewards)) == 0.0


@pytest.mark.parametrize(
    "reduction",
    [
        lambda x: SMALL.seq_sum(x),
        lambda x: SMALL.seq_mean(x, torch.tensor([True, False, True, True, False])),
        lambda x: SMALL.seq_max(x)[[0, 2]],
        lambda x: SMALL.seq_suffix_sum(x),
        lambda x: SMALL.seq_suffix_sum(x, torch.full((5,), 0.7)),
        lambda x: SMALL.group_mean(SMALL.seq_sum(x)),
        lambda x: SMALL.to_tokens(SMALL.seq_mean(x)),
    ],
)
def test_gradients_of_reductions(reduction: object) -> None:
    assert torch.autograd.gradcheck(reduction, X_T.clone().requires_grad_())  # type: ignore[arg-type]


def test_no_gradient_and_no_nan_from_outside_the_selection() -> None:
    x_t = torch.tensor([1.0, math.inf, 2.0, math.nan, 3.0], requires_grad=True)
    SMALL.seq_sum(x_t, torch.isfinite(x_t)).sum().backward()
    assert x_t.grad is not None
    assert x_t.grad.tolist() == [1, 0, 1, 0, 1]


def test_several_values_per_row_are_summed_together() -> None:
    x_t = torch.stack([X_T, -X_T], 1)
    assert SMALL.seq_sum(x_t).tolist() == [[3, -3], [0, 0], [60, -60]]
    where = torch.tensor([True, False, True, False, False])
    assert SMALL.seq_sum(x_t, where).tolist() == [[1, -1], [0, 0], [10, -10]]


def test_a_layout_of_nothing() -> None:
    empty = Layout.of([], [])
    assert (empty.n_tokens, empty.n_sequences, empty.n_prompts, empty.n_context) == (0, 0, 0, 0)
    assert empty.seq_suffix_sum(torch.zeros(0)).tolist() == []
    assert empty.group_std(torch.zeros(0)).tolist() == []


def test_without_group_sizes_every_sequence_is_its_own_prompt() -> None:
    assert Layout.of([3, 1]).group_sizes.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([1, -1],), r"seq_lengths must be .*\[1, -1\]"),
        (([1, 2], [1]), "add up to 1, but there are 2 sequences"),
        (([1, 2], [2], [1, 1]), "2 context lengths for 1 prompts"),
        (([[1, 2]],), "seq_lengths must be"),
        (([1.5, 2.0],), r"seq_lengths must be .*1\.5"),
    ],
)
def test_impossible_layouts_are_refused(arguments: tuple[list[int], ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Layout.of(*arguments)


def test_a_tensor_of_the_wrong_level_is_refused() -> None:
    with pytest.raises(ValueError, match="a token column has 5 rows, this tensor has shape"):
        SMALL.seq_sum(torch.zeros(3))
    with pytest.raises(ValueError, match="unknown level 'word'; the levels are token"):
        SMALL.size("word")


def test_integers_can_be_compared_too() -> None:
    layout = Layout.of([1, 1, 1, 1], [2, 1, 1])
    ranks = torch.tensor([3, -2, 5, 5])
    assert layout.group_max(ranks).tolist() == [3, 5, 5]
    assert layout.group_min(ranks).tolist() == [-2, 5, 5]
    assert layout.group_constant(ranks).tolist() == [False, True, True]
