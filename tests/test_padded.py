"""Padded rows to a batch and back: padding on either side, a pad that equals the end token, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unipo.padded import contexts_to_padded, from_padded, to_padded

EOS = PAD = 2  # the pad token is the end token: masks must come from the caller, never from the ids


def rows(content: list[list[int]], left: bool, width: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    width = max((len(r) for r in content), default=0) if width is None else width
    ids, mask = torch.full((len(content), width), PAD), torch.zeros(len(content), width, dtype=torch.int64)
    for i, row in enumerate(content):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, span], mask[i, span] = torch.tensor(row, dtype=torch.int64), 1
    return ids, mask


PROMPTS = [[5, 6], [5, 6], [7], [7]]
RESPONSES = [[8, EOS], [EOS], [], [9, EOS, 9]]


@pytest.mark.parametrize("prompts_left", [True, False])
@pytest.mark.parametrize("responses_left", [True, False])
def test_the_side_of_the_padding_changes_nothing(prompts_left: bool, responses_left: bool) -> None:
    batch = from_padded(*rows(PROMPTS, prompts_left, 4), *rows(RESPONSES, responses_left, 5), group_sizes=[2, 2])
    assert batch.context.tolist() == [5, 6, 7]
    assert batch.tokens.tolist() == [8, EOS, EOS, 9, EOS, 9]
    assert batch.layout.seq_lengths.tolist() == [2, 1, 0, 3]
    assert batch.layout.group_sizes.tolist() == [2, 2]
    assert batch.layout.context_lengths.tolist() == [2, 1]
    assert batch.trainable.all()


def test_end_tokens_that_look_like_padding_are_kept() -> None:
    batch = from_padded(*rows([[1]], True), *rows([[EOS, EOS, EOS]], False, 6))
    assert batch.tokens.tolist() == [EOS, EOS, EOS]


def test_trainable_and_other_token_columns_follow_their_tokens() -> None:
    ids, mask = rows(RESPONSES, False, 4)
    number = torch.arange(16, dtype=torch.float64).reshape(4, 4)
    batch = from_padded(
        *rows(PROMPTS, True), ids, mask, trainable=(number % 2 == 0), behaviour_logp=-number, odd_one=number
    )
    assert batch.behaviour_logp.tolist() == [0, -1, -4, -12, -13, -14]
    assert batch.odd_one.tolist() == [0, 1, 4, 12, 13, 14]
    assert batch.trainable.tolist() == [True, False, True, True, False, True]


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=6),
    st.lists(st.integers(0, 9), max_size=3),
    st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_there_and_back_again(responses: list[list[int]], prompt: list[int], left: bool) -> None:
    ids, mask = rows(responses, left)
    batch = from_padded(*rows([prompt] * len(responses), left), ids, mask, group_sizes=[len(responses)])
    back, back_mask = to_padded(batch, batch.tokens, fill=PAD)
    expected, expected_mask = rows(responses, left=False)
    assert torch.equal(back, expected)
    assert torch.equal(back_mask, expected_mask.bool())
    contexts, context_mask = contexts_to_padded(batch, fill=PAD)
    assert torch.equal(contexts, rows([prompt] * len(responses), left=True)[0])
    assert context_mask.sum().item() == len(prompt) * len(responses)


def test_contexts_come_back_left_padded_once_per_sequence() -> None:
    batch = from_padded(*rows(PROMPTS, False), *rows(RESPONSES, False), group_sizes=[2, 2])
    ids, mask = contexts_to_padded(batch, fill=0)
    assert ids.tolist() == [[5, 6], [5, 6], [0, 7], [0, 7]]
    assert mask.tolist() == [[True, True], [True, True], [False, True], [False, True]]


def test_a_group_with_two_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="sequences 0 and 2 are one group but their prompts differ"):
        from_padded(*rows(PROMPTS, True), *rows(RESPONSES, False), group_sizes=[3, 1])


@pytest.mark.parametrize("sizes", [[2, 3], [2, 1], [4, 0]])
def test_group_sizes_that_do_not_fit_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="add up to the 4 rows"):
        from_padded(*rows(PROMPTS, True), *rows(RESPONSES, False), group_sizes=sizes)


def test_no_rows_give_an_empty_batch() -> None:
    none = torch.zeros(0, 3, dtype=torch.int64)
    batch = from_padded(none, none, none, none)
    assert (batch.layout.n_prompts, batch.layout.n_tokens, batch.layout.n_context) == (0, 0, 0)
