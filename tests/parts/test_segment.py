"""Credit by segment: the card of numbers worked out by hand, and what sums to what."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from by_hand import batch_of, tensor
from torch import Tensor

from unipo.batch import Batch
from unipo.check import check_advantage
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.advantage import whitened
from unipo.parts.part import Continuations
from unipo.parts.segment import (
    SegmentDifference,
    SegmentValues,
    TreeDifference,
    Uncertain,
    segment_differences,
    segment_starts,
)
from unipo.parts.source import SegmentTree

P = [0.99, 0.5, 0.95, 0.3, 0.2, 0.99, 0.6]


def starts(p: list[float], interval: int, lengths: list[int] | None = None) -> list[int]:
    layout = Layout.of(lengths or [len(p)])
    found = segment_starts(tensor(p).log(), layout, torch.ones(len(p), dtype=torch.bool), 0.9, interval)
    return found.nonzero().flatten().tolist()


def test_every_second_uncertain_token_begins_a_segment() -> None:
    # U = {1, 3, 4, 6}; every second from the first: 1 and 4
    assert starts(P, 2) == [1, 4]
    assert starts(P, 1) == [1, 3, 4, 6]
    assert starts(P, 5) == [1]
    assert starts([0.95] * 3, 1) == []


def test_counting_begins_anew_in_every_response() -> None:
    assert starts([0.1] * 8, 2, [3, 0, 5]) == [0, 2, 3, 5, 7]
    assert starts([0.1] * 8, 2, [0, 8, 0]) == [0, 2, 4, 6]


def test_tokens_that_may_not_be_cut_before_are_not_counted() -> None:
    where = torch.tensor([False, True, True, False, True])
    found = segment_starts(tensor([0.1] * 5).log(), Layout.of([5]), where, 0.9, 2)
    assert found.nonzero().flatten().tolist() == [1, 4]


def of_example(**settings: Any) -> Tensor:
    value = tensor([math.nan, 0.5, math.nan, math.nan, 0.75, math.nan, math.nan])
    batch = batch_of([7], reward=[1.0], behaviour_logp=tensor(P).log()).with_columns(None, segment_value=value)
    batch = batch.with_columns(None, mask=Uncertain()(batch))
    return SegmentDifference(interval=2, **settings)(batch)


def test_the_worked_example() -> None:
    # V = .5 before token 1, .75 before token 4, R = 1: tokens 1-3 and 4-6 rise by .25 each; then p >= .9 is masked
    assert of_example(whiten=False).tolist() == [0, 0.25, 0, 0.25, 0.25, 0, 0.25]
    assert of_example().tolist() == [0.0] * 7  # all counted values are equal: nothing to tell apart


@pytest.mark.parametrize("seed", range(3))
def test_with_the_first_cut_at_the_prompt_segments_sum_to_reward_minus_its_value(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (6,), generator=draw)
    layout = Layout.of(lengths)
    value = torch.rand(layout.n_tokens, generator=draw, dtype=torch.float64)
    reward = torch.rand(6, generator=draw, dtype=torch.float64)
    every_third = layout.token_position % 3 == 0
    got = segment_differences(value, every_third, reward, layout)
    assert torch.allclose(layout.seq_sum(got, every_third), reward - value[layout.seq_starts], atol=1e-12)
    within = got[1:][~every_third[1:]]
    assert torch.equal(within, got[:-1][~every_third[1:]])  # one value per segment


def test_nothing_is_credited_before_the_first_cut_or_without_one() -> None:
    cut = torch.tensor([False, False, False, True, False, False, False])
    got = segment_differences(tensor([9.0, 9, 9, 0.25, 9, 9, 9]), cut, tensor([5.0, 1.0, 7.0]), Layout.of([2, 3, 2]))
    assert got.tolist() == [0, 0, 0, 0.75, 0.75, 0, 0]


def test_zero_differences_move_with_the_mean_unless_told_not_to() -> None:
    batch = batch_of([1, 1], reward=[1.0, 0.0]).with_columns(None, segment_value=tensor([0.0, 0.0]))
    plain = SegmentDifference(whiten=False)(batch)
    assert plain.tolist() == [1.0, 0.0]
    torch.testing.assert_close(SegmentDifference()(batch), whitened(plain, batch.mask))
    assert float(SegmentDifference()(batch)[1]) < 0


@dataclass
class Teller:
    """Says how long each prefix was, and remembers what it was asked."""

    asked: list[list[int]] = field(default_factory=list)

    def continued(self, batch: Batch, at: Tensor, n: int) -> Continuations:
        self.asked.append(at.tolist())
        place = batch.layout.token_position[at].double()
        reward = place[:, None].expand(-1, n).clone()
        reward[:, 0] += 3.0
        truncated = torch.zeros(len(at), n, dtype=torch.bool)
        if n > 1:
            truncated[:, 1] = True
            reward[place == 2] = math.nan
        return Continuations(reward, truncated)


def test_each_distinct_prefix_is_continued_once_and_truncated_ones_get_their_reward() -> None:
    # two responses share the prompt and their first two tokens; every token is uncertain
    batch = batch_of([3, 3], [2], behaviour_logp=[-1.0] * 6, row=[{}], answer=[None], sample_id=[0.0, 1.0])
    batch = batch.with_columns(None, tokens=torch.tensor([4, 5, 6, 4, 7, 8]))
    teller = Teller()
    value = SegmentValues(interval=1, continuations=3, truncated_reward=-6.0)(batch, teller)["segment_value"]  # type: ignore[arg-type]
    # prefixes: (), (4,), (4, 5), the same (), (4,), then (4, 7)
    assert teller.asked == [[0, 1, 2, 5]]
    # place 0: 3, -6, 0;  place 1: 4, -6, 1;  place 2: only the truncated one counts... as -6
    torch.testing.assert_close(value, tensor([-1.0, -1 / 3, -6.0, -1.0, -1 / 3, -6.0]))


def test_a_cut_that_nobody_could_score_is_no_cut_and_no_cut_asks_nobody() -> None:
    class Mute(Teller):
        def continued(self, batch: Batch, at: Tensor, n: int) -> Continuations:
            drawn = super().continued(batch, at, 1)
            return Continuations(torch.full_like(drawn.reward, math.nan), drawn.truncated)

    given = {"row": [{}], "answer": [None], "sample_id": [0.0]}
    batch = batch_of([2], behaviour_logp=[-1.0, -1.0], reward=[1.0], **given)
    value = SegmentValues()(batch, Mute())["segment_value"]  # type: ignore[arg-type]
    assert bool(value.isnan().all())
    assert SegmentDifference(whiten=False)(batch.with_columns(None, segment_value=value)).tolist() == [0.0, 0.0]
    sure, teller = batch_of([2], behaviour_logp=[-0.01, -0.02], **given), Teller()
    SegmentValues()(sure, teller)  # type: ignore[arg-type]
    assert teller.asked == []


@pytest.mark.parametrize(
    "part", [SegmentDifference(), SegmentDifference(whiten=False), TreeDifference(), TreeDifference(scale=True)]
)
def test_they_keep_what_every_advantage_keeps(part: Any) -> None:
    assert check_advantage(part).passed


def test_an_edge_of_a_tree_earns_child_minus_parent() -> None:
    batch = batch_of([1, 1], reward=[1.0, 0.25], parent_reward=[0.5, 0.5], sibling_std=[0.25, 0.0])
    assert TreeDifference()(batch).tolist() == [0.5, -0.25]
    torch.testing.assert_close(TreeDifference(scale=True, eps=0.25)(batch), tensor([1.0, -1.0]))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="interval and continuations"):
        SegmentDifference(interval=0)
    with pytest.raises(ConfigError, match="probability"):
        Uncertain(0.0)
    with pytest.raises(ConfigError, match="at least 1"):
        SegmentTree(branching=())
