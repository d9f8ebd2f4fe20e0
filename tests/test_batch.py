"""Batch: columns, taking, splitting, concatenating, saving, and what each refuses."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.layout import Layout

#   prompt 0: [10 11] [] ;  prompt 1: [20] [21 22 23] [24 25]
LAYOUT = Layout.of([2, 0, 1, 3, 2], [2, 3], [3, 1])
SMALL = Batch.of(
    LAYOUT,
    tokens=torch.tensor([10, 11, 20, 21, 22, 23, 24, 25]),
    context=torch.tensor([1, 2, 3, 4]),
    reward=torch.tensor([0.5, 0.0, 1.0, 0.25, 0.0]),
    text=["a", "", "c", "d", "e"],
    answer=["x", None],
)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    n = sum(sizes)
    lengths = draw(st.lists(st.integers(0, 7), min_size=n, max_size=n))
    context = draw(st.lists(st.integers(0, 5), min_size=len(sizes), max_size=len(sizes)))
    layout = Layout.of(lengths, sizes, context)
    return Batch.of(
        layout,
        tokens=torch.arange(layout.n_tokens),
        context=torch.arange(layout.n_context),
        sample_id=torch.arange(n),
        prompt_id=torch.arange(len(sizes)),
        text=[str(i) for i in range(n)],
    )


def same(a: Batch, b: Batch) -> None:
    for name in ("seq_lengths", "group_sizes", "context_lengths"):
        assert torch.equal(getattr(a.layout, name), getattr(b.layout, name)), name
    assert set(a.columns) == set(b.columns)
    for name, value in a.columns.items():
        other = b.columns[name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


# -- columns ---------------------------------------------------------------------------------------
def test_with_columns_leaves_the_old_batch_alone() -> None:
    more = SMALL.with_columns(None, score=torch.zeros(5))
    assert more.has("score")
    assert not SMALL.has("score")
    assert more.without("score", "text").columns.keys() == SMALL.columns.keys() - {"text"}


def test_a_missing_column_says_which_stage_makes_it() -> None:
    with pytest.raises(AttributeError, match=r"no column 'advantage'; it exists after the advantage stage \(it has: "):
        _ = SMALL.advantage
    with pytest.raises(AttributeError, match="no column 'rewards'"):
        _ = SMALL.rewards


def test_a_column_of_the_wrong_length_or_level_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'reward' is one row per sequence \(5\), got 4"):
        SMALL.with_columns(None, reward=torch.zeros(4))
    with pytest.raises(ConfigError, match="'reward' belongs to level 'sequence', not 'token'"):
        SMALL.with_columns("token", reward=torch.zeros(8))
    with pytest.raises(ConfigError, match="column 'surprise' is new: say its level"):
        SMALL.with_columns(None, surprise=torch.zeros(8))
    with pytest.raises(ValueError, match="unknown level 'word'"):
        SMALL.with_columns("word", surprise=torch.zeros(8))


def test_a_new_column_keeps_its_level() -> None:
    batch = SMALL.with_columns("prompt", difficulty=torch.tensor([1.0, 2.0]))
    assert batch.take_prompts([1]).difficulty.tolist() == [2.0]
    with pytest.raises(ConfigError, match="'difficulty' belongs to level 'prompt'"):
        batch.with_columns("token", difficulty=torch.zeros(8))


# -- taking ----------------------------------------------------------------------------------------
def test_take_sequences_takes_their_tokens_and_prompts() -> None:
    taken = SMALL.take_sequences([3, 4])
    assert taken.tokens.tolist() == [21, 22, 23, 24, 25]
    assert taken.context.tolist() == [4]
    assert (taken.text, taken.answer) == (["d", "e"], [None])
    assert taken.layout.group_sizes.tolist() == [2]


def test_take_sequences_can_keep_prompts_without_any() -> None:
    taken = SMALL.take_sequences(torch.tensor([False, False, True, False, False]), drop_empty=False)
    assert taken.layout.group_sizes.tolist() == [0, 1]
    assert taken.context.tolist() == [1, 2, 3, 4]
    assert SMALL.take_sequences([]).layout.n_prompts == 0


def test_take_prompts_takes_whole_groups() -> None:
    taken = SMALL.take_prompts([1])
    assert taken.tokens.tolist() == [20, 21, 22, 23, 24, 25]
    assert taken.layout.group_sizes.tolist() == [3]


@pytest.mark.parametrize("index", [[3, 1], [2, 2]])
def test_rows_out_of_order_or_twice_are_refused(index: list[int]) -> None:
    with pytest.raises(ValueError, match="ascending and unique"):
        SMALL.take_sequences(index)


def test_rows_outside_are_refused() -> None:
    with pytest.raises(IndexError, match=r"\[0, 5\), got 0\.\.5"):
        SMALL.take_sequences([0, 5])
    with pytest.raises(IndexError, match=r"got -1\.\.1"):
        SMALL.take_prompts([-1, 1])
    with pytest.raises(ValueError, match="a mask of 2 for 5 rows"):
        SMALL.take_sequences(torch.tensor([True, False]))


@given(batches(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_taking_prompts_and_their_complement_loses_nothing(batch: Batch, random: object) -> None:
    chosen = torch.tensor([random.random() < 0.5 for _ in range(batch.layout.n_prompts)])  # type: ignore[attr-defined]
    both = [batch.take_prompts(chosen), batch.take_prompts(~chosen)]
    for name in ("tokens", "context", "sample_id", "prompt_id"):
        parts = torch.cat([part.columns[name] for part in both])
        assert sorted(parts.tolist()) == batch.columns[name].tolist()
    for part in both:  # every token is still under its own sequence
        owner = batch.layout.token_seq[part.tokens]
        assert torch.equal(owner, part.sample_id[part.layout.token_seq])


# -- splitting -------------------------------------------------------------------------------------
@given(batches(), st.integers(1, 25), st.booleans())
@settings(max_examples=100, deadline=None)
def test_split_by_tokens_covers_each_sequence_once_within_the_budget(batch: Batch, budget: int, whole: bool) -> None:
    pieces = list(batch.split_by_tokens(budget, whole_groups=whole))
    assert torch.cat([p.sample_id for p in pieces]).tolist() == batch.sample_id.tolist()
    assert torch.cat([p.tokens for p in pieces]).tolist() == batch.tokens.tolist()
    for piece in pieces:
        units = piece.layout.n_prompts if whole else piece.layout.n_sequences
        assert piece.layout.n_tokens + piece.layout.n_context <= budget or units == 1
        if whole:
            expected = batch.layout.group_sizes[piece.prompt_id]
            assert piece.layout.group_sizes.tolist() == expected.tolist()


def test_a_shared_prompt_is_counted_once_per_piece() -> None:
    # prompt 1 has 1 context token: [20] and [21 22 23] cost 1 + 1 + 3 = 5, with [24 25] it would be 7
    pieces = list(SMALL.take_prompts([1]).split_by_tokens(5))
    assert [p.tokens.tolist() for p in pieces] == [[20, 21, 22, 23], [24, 25]]
    assert [p.context.tolist() for p in pieces] == [[4], [4]]


def test_no_budget_is_one_piece_and_nothing_gives_none() -> None:
    assert list(SMALL.split_by_tokens(None)) == [SMALL]
    assert list(SMALL.take_sequences([]).split_by_tokens(10)) == []
    with pytest.raises(ConfigError, match="must be positive, got 0"):
        list(SMALL.split_by_tokens(0))


@given(batches(), st.data())
@settings(max_examples=40, deadline=None)
def test_split_prompts_and_concat_give_the_batch_back(batch: Batch, data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, batch.layout.n_prompts))
    pieces = batch.split_prompts(parts)
    sizes = [p.layout.n_prompts for p in pieces]
    assert len(pieces) == parts
    assert max(sizes) - min(sizes) <= 1
    same(Batch.concat(pieces), batch)


def test_more_minibatches_than_prompts_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot cut 2 prompts into 3 minibatches"):
        SMALL.split_prompts(3)


# -- concatenating ---------------------------------------------------------------------------------
def test_concat_refuses_nothing_and_odd_columns() -> None:
    with pytest.raises(DataError, match="of nothing"):
        Batch.concat([])
    with pytest.raises(DataError, match="columns differ: answer, text"):
        Batch.concat([SMALL, SMALL.without("text", "answer")])


def test_concat_puts_one_after_the_other() -> None:
    twice = Batch.concat([SMALL, SMALL])
    assert twice.layout.group_sizes.tolist() == [2, 3, 2, 3]
    assert twice.layout.seq_sum(twice.tokens).tolist() == [21, 0, 20, 66, 49] * 2
    assert twice.text == SMALL.text * 2


# -- storing ---------------------------------------------------------------------------------------
@given(batches())
@settings(max_examples=15, deadline=None)
def test_save_and_load_give_the_batch_back(tmp_path_factory: pytest.TempPathFactory, batch: Batch) -> None:
    path = tmp_path_factory.mktemp("batch") / "batch.safetensors"
    states = {"running_baseline": {"baseline": 0.25}}
    batch = Batch(batch.layout, batch.columns, batch.levels, step=3, total_steps=9, states=states)
    batch = batch.with_columns("prompt", difficulty=torch.rand(batch.layout.n_prompts))
    batch.save(path)
    loaded = Batch.load(path)
    same(loaded, batch)
    assert (loaded.step, loaded.total_steps, loaded.states, loaded.levels) == (3, 9, states, batch.levels)


def test_one_tensor_in_two_columns_can_be_saved(tmp_path: Path) -> None:
    logp = -torch.rand(8)
    batch = SMALL.with_columns(None, old_logp=logp, counter_logp=logp)
    batch.save(tmp_path / "b.safetensors")
    same(Batch.load(tmp_path / "b.safetensors"), batch)


def test_what_json_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot save 'row' of this batch as JSON"):
        SMALL.with_columns(None, row=[{"image": object()}, {}]).save(tmp_path / "b.safetensors")


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="is not a batch written by"):
        Batch.load(tmp_path / "other.safetensors")


def test_a_batch_can_be_pickled() -> None:
    same(pickle.loads(pickle.dumps(SMALL)), SMALL)


def test_moving_to_a_device_moves_layout_and_tensors_and_leaves_objects() -> None:
    moved = SMALL.to("meta")
    assert {v.device.type for v in moved.columns.values() if isinstance(v, torch.Tensor)} == {"meta"}
    assert moved.layout.device.type == "meta"
    assert moved.text == SMALL.text
