"""Behaviours read from responses, and what is paid for them: GCPO, Ada-GRPO, ASPO by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from by_hand import batch_of, close, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.layout import Layout
from unipo.parts.advantage import GroupNormalised
from unipo.parts.behaviour import (
    Behaviour,
    Category,
    ContrastiveBonus,
    EarlyCall,
    FirstMarker,
    FirstToolCall,
    LengthBonus,
    RarityBonus,
    contrast_sign,
    early_bias,
    rarity,
)

# -- GCPO ----------------------------------------------------------------------------------------------
DID = [True] * 4 + [False] * 4
HELPED = [1.0, 1, 1, 0, 1, 0, 0, 0]  # 3/4 with, 1/4 without


def constructions(score: list[float], did: list[bool], tokens: list[int] | None = None, **columns: Any) -> Batch:
    batch = batch_of(tokens or [1] * len(score), [len(score)], **({"reward": score, "score": score} | columns))
    return batch.with_columns("sequence", behaviour=torch.tensor(did))


def sign(score: list[float], did: list[bool], margin: float) -> float:
    n = len(score)
    everyone = torch.ones(n, dtype=torch.bool)
    return float(contrast_sign(tensor(score), torch.tensor(did), Layout.of([1] * n, [n]), everyone, margin))


def test_the_sign_by_hand() -> None:
    without = [not d for d in DID]
    assert sign(HELPED, DID, 0.1) == 1
    assert sign(HELPED, without, 0.1) == -1
    assert sign(HELPED, DID, 0.5) == 0  # a difference of exactly the margin does not count
    assert sign([1, 0, 1, 0, 1, 0, 1, 0], DID, 0.0) == 0
    assert sign(HELPED, [True] * 8, 0.0) == 0
    assert sign(HELPED, [False] * 8, 0.0) == 0


def test_the_bonus_by_hand() -> None:
    part = ContrastiveBonus(strength=0.5, margin=0.1)
    close(part(constructions(HELPED, DID)), [1.5, 1.5, 1.5, 0.5, 1, 0, 0, 0])
    hurt = [1 - s for s in HELPED]
    close(part(constructions(hurt, DID)), [-0.5, -0.5, -0.5, 0.5, 0, 1, 1, 1])
    even = [1.0, 0, 1, 0, 1, 0, 1, 0]
    close(part(constructions(even, DID)), even)


groups = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=8)


@given(groups, st.sampled_from([0.0, 0.1, 0.5]), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_sign_is_antisymmetric_and_knows_no_order(
    members: list[tuple[bool, bool]], margin: float, random: Any
) -> None:
    score, did = [float(s) for s, _ in members], [d for _, d in members]
    assert sign(score, [not d for d in did], margin) == -sign(score, did, margin)
    random.shuffle(members)
    assert sign([float(s) for s, _ in members], [d for _, d in members], margin) == sign(score, did, margin)


def test_without_an_effect_the_sign_is_zero_on_average_but_seldom_zero() -> None:
    """Four with and four without, all right half of the time: summed over all 256 outcomes."""
    found = {
        margin: [sign(list(map(float, r)), DID, margin) for r in itertools.product([0, 1], repeat=8)]
        for margin in (0.0, 0.3)
    }
    for signs in found.values():
        assert sum(signs) == 0
    busy = {margin: sum(s != 0 for s in signs) / 256 for margin, signs in found.items()}
    # P(equal counts) of two binomials(4, 1/2) is C(8, 4)/256 = 70/256; a gap of one of four is below 0.3
    assert busy[0.0] == pytest.approx(1 - 70 / 256)
    assert busy[0.3] == pytest.approx(1 - (70 + 2 * 56) / 256)


def test_a_wrong_response_with_the_behaviour_never_beats_a_right_one_without() -> None:
    def ordered(length: LengthBonus, tokens: list[int]) -> bool:
        aux, found = ContrastiveBonus(), True
        for score in itertools.product([0.0, 1.0], repeat=5):
            batch = constructions(list(score), [True, True, False, False, False], tokens)
            total = (aux(batch) + length(batch) - batch.reward).tolist()
            found &= all(total[i] > total[j] for i in range(5) for j in range(5) if score[i] > score[j])
        return found

    for tokens in ([40, 40, 1, 1, 1], [1, 1, 40, 40, 40]):
        assert ordered(LengthBonus(limit=40), tokens)
    # 0.5 + 0.6 > 1: wrong with it and long, 1.1, above right without it and short, 1.015
    assert not ordered(LengthBonus(strength=0.6, limit=40), [40, 40, 1, 1, 1])


def test_the_unscored_take_no_part_in_the_comparison() -> None:
    batch = constructions([1.0, 0.0, 1.0], [True, False, False], scored=[True, True, False])
    close(ContrastiveBonus()(batch), [1.5, 0, 1])  # without the last: 1 against 0


def test_the_length_bonus_by_hand() -> None:
    batch = batch_of([10, 40, 80], [3], reward=[0.0, 1.0, 0.0])
    close(LengthBonus(strength=0.1, limit=40)(batch), [0.025, 1.1, 0.1])


def test_a_behaviour_is_a_match_of_its_pattern() -> None:
    empty = ["<aux> </aux>", "<aux></aux><aux></aux>", "<aux></aux> x </aux>", "<aux>open", ""]
    texts = ["<aux>\nline AB\n</aux>", "x <aux>c</aux> y", *empty]
    batch = batch_of([1] * 7, text=texts)
    assert Behaviour()(batch)["behaviour"].tolist() == [True, True] + [False] * 5
    assert Behaviour(pattern="x <.*y")(batch)["behaviour"].tolist() == [False, True] + [False] * 5


def test_exactly_the_margin_does_not_count() -> None:
    # 4/5 - 3/5 is 0.2 and a rounding more, 3/5 - 2/5 one less
    did = [True] * 5 + [False] * 5
    for with_, without in ((4, 3), (3, 2)):
        score = [float(i < with_) for i in range(5)] + [float(i < without) for i in range(5)]
        assert sign(score, did, 0.2) == 0
        assert sign(score, did, 0.19) == 1


# -- Ada-GRPO ----------------------------------------------------------------------------------------------
EIGHT = [0] + [1] * 2 + [3] * 5  # one direct, two short, five long


def formats(category: list[int], reward: list[float], step: int = 0, total: int = 100, **columns: Any) -> Batch:
    batch = batch_of([1] * len(category), [len(category)], reward=reward, **columns)
    return replace(batch.with_columns("sequence", category=torch.tensor(category)), step=step, total_steps=total)


def alpha(category: list[int], step: int, total: int = 100) -> Tensor:
    n = len(category)
    return rarity(torch.tensor(category), Layout.of([1] * n, [n]), torch.ones(n, dtype=torch.bool), step, total)


def test_rarity_of_eight_by_hand() -> None:
    close(alpha(EIGHT, 0), [8, 4, 4, 1.6, 1.6, 1.6, 1.6, 1.6])
    close(alpha(EIGHT, 50), [4.5, 2.5, 2.5, 1.3, 1.3, 1.3, 1.3, 1.3])
    assert alpha(EIGHT, 100).tolist() == [1.0] * 8
    reward = RarityBonus()(formats(EIGHT, [1.0] * 8))
    assert float(reward.mean()) == pytest.approx(3)
    value = GroupNormalised(eps=1e-6)(formats(EIGHT, reward.tolist()))
    assert (value.sign()).tolist() == [1, 1, 1, -1, -1, -1, -1, -1]


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=8), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_rarity_is_at_least_one_falls_over_the_run_and_levels_the_formats_at_its_start(
    category: list[int], step: int
) -> None:
    value = alpha(category, step)
    assert bool((value >= 1).all())
    assert bool((alpha(category, min(100, step + 1)) <= value + 1e-12).all())
    if len(set(category)) == 1:
        assert value.tolist() == [1.0] * len(category)
    start = alpha(category, 0)
    for kind in set(category):
        own = torch.tensor([c == kind for c in category])
        assert float(start[own].sum()) == pytest.approx(len(category))


def test_scaling_the_rewards_leaves_the_advantage_alone() -> None:
    one = RarityBonus()(formats(EIGHT, [1.0, 0, 1, 0, 1, 0, 1, 1], step=20))
    two = RarityBonus()(formats(EIGHT, [5.0, 0, 5, 0, 5, 0, 5, 5], step=20))
    part = GroupNormalised(eps=1e-6)
    close(part(formats(EIGHT, two.tolist())), part(formats(EIGHT, one.tolist())), 1e-5)


def test_nothing_right_or_one_format_all_right_teaches_nothing() -> None:
    part, shape = GroupNormalised(), RarityBonus()
    for category, reward in ((EIGHT, [0.0] * 8), ([3] * 8, [1.0] * 8)):
        shaped = shape(formats(category, reward))
        assert part(formats(category, shaped.tolist())).tolist() == [0.0] * 8


def test_a_response_of_no_format_counts_as_one_and_earns_nothing() -> None:
    close(RarityBonus()(formats([-1, 0, 0, -1], [1.0, 1.0, 0.0, 0.0])), [0, 2, 0, 0])


def test_the_unscored_are_not_counted() -> None:
    batch = formats([0, 1, 1, 1], [1.0] * 4, scored=[True, True, True, False])
    close(RarityBonus()(batch)[:3], [3, 1.5, 1.5])


def test_a_batch_without_any_format_is_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match=r"<ANSWER> <COT> <CODE> <LONG_COT>"):
        RarityBonus()(formats([-1, -1], [1.0, 0.0]))
    assert RarityBonus()(formats([-1, -1], [0.0, 0.0])).tolist() == [0.0, 0.0]


def test_a_category_is_the_tag_the_text_opens_with() -> None:
    texts = ["<COT>why</COT>", " \n<LONG_COT>", "<ANSWER>4", "see <CODE>", "", "<CODE>1"]
    batch = batch_of([1] * 6, text=texts)
    assert Category()(batch)["category"].tolist() == [1, 3, 0, -1, -1, 2]
    assert Category(tags="see <")(batch)["category"].tolist() == [1, 1, 1, 0, -1, 1]


# -- ASPO ----------------------------------------------------------------------------------------------------
def bias(
    advantage: list[float], place: list[int], length: list[int], eligible: list[bool] | None = None, delta: float = -2.0
) -> list[float]:
    n = len(advantage)
    layout = Layout.of([1] * n, [n])
    chosen = torch.tensor(eligible or [True] * n)
    value = early_bias(tensor(advantage), torch.tensor(place), torch.tensor(length), chosen, layout, delta, 0.7)
    return [float(x) for x in value]


def test_the_bias_by_hand() -> None:
    # mean p 200, mean L 1000: -2 * -100/1000 = +0.2
    assert bias([1, 1], [100, 300], [800, 1200]) == pytest.approx([0.2, -0.2])
    # mean p 800: +1.6 and -1.6, clipped to 0.7
    assert bias([1, 1], [0, 1600], [800, 1200]) == pytest.approx([0.7, -0.7])
    # the bound is 0.7 |A|, also for a baseline that makes a right response negative
    assert bias([0.5, -0.5], [0, 1600], [800, 1200]) == pytest.approx([0.35, -0.35])
    # means are over the eligible only
    assert bias([1, 1, -1], [100, 300, 9000], [800, 1200, 9], [True, True, False]) == pytest.approx([0.2, -0.2, 0])


def test_no_bias_where_there_is_nothing_to_compare() -> None:
    assert bias([0, 0], [100, 300], [800, 1200]) == [0, 0]
    assert bias([1, 1], [100, 300], [800, 1200], [True, False]) == [0, 0]
    assert bias([1, 1], [100, 300], [800, 1200], [False, False]) == [0, 0]
    assert bias([1, 1], [100, 300], [800, 1200], delta=0.0) == [0, 0]


places = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 500)), min_size=2, max_size=6)


@given(places, st.integers(0, 300), st.integers(2, 5), st.floats(0.01, 3))
@settings(max_examples=60, deadline=None)
def test_the_bias_keeps_signs_and_knows_neither_shift_nor_scale(
    members: list[tuple[int, int]], shift: int, scale: int, size: float
) -> None:
    p, length = [a for a, _ in members], [b for _, b in members]
    advantage = [size] * len(p)
    value = bias(advantage, p, length)
    assert all((1 - 0.7) * size - 1e-9 <= size + b <= (1 + 0.7) * size + 1e-9 for b in value)
    assert bias(advantage, [a + shift for a in p], length) == pytest.approx(value, abs=1e-9)
    assert bias(advantage, [a * scale for a in p], [b * scale for b in length]) == pytest.approx(value, abs=1e-9)
    wide = bias([1e9] * len(p), p, length)
    assert sum(wide) == pytest.approx(0, abs=1e-9)


def calls(**columns: Any) -> Batch:
    """Three right responses and a wrong one; tool output at places 2, 4, 1 and none."""
    trainable = [True, True, False, True, True, True, True, True, False, True, True, False, True, True, True, True]
    batch = batch_of([5, 5, 4, 2], [4], trainable=trainable, score=[1.0, 1.0, 0.0, 1.0], **columns)
    value = tensor([0.5, 0.5, -1.5, 0.5])
    mask = batch.trainable
    return batch.with_columns(
        None, mask=mask, sequence_advantage=value, advantage=torch.where(mask, batch.layout.to_tokens(value), 0.0)
    )


def test_the_first_call_is_where_the_tool_begins_to_speak() -> None:
    batch = calls()
    assert FirstToolCall()(batch)["first_call"].tolist() == [2, 3, 1, -1]
    empty = batch_of([0, 2], [2], trainable=[True, False])
    assert FirstToolCall()(empty)["first_call"].tolist() == [-1, 1]


def test_early_right_calls_gain_and_late_ones_lose() -> None:
    batch = calls()
    batch = batch.with_columns("sequence", **FirstToolCall()(batch))
    value = EarlyCall()(batch)
    # eligible: the first two; mean p 2.5, mean L 5: +-2 * 0.5/5 = +-0.2
    wanted = batch.layout.to_tokens(tensor([0.2, -0.2, 0, 0]))
    close(value - batch.advantage, wanted)
    # in the policy's own tokens the lengths are 4 and 4: +-2 * 0.5/4
    own = EarlyCall(own_tokens=True)(batch)
    close(own - batch.advantage, batch.layout.to_tokens(tensor([0.25, -0.25, 0, 0])))


def test_a_marker_in_the_text_may_stand_for_the_call() -> None:
    class Letters:
        def encode(self, text: str) -> list[int]:
            return [ord(c) for c in text]

    batch = batch_of([9, 3, 0, 4], text=["ab ```python", "```python```", "```python", "none"])
    found = FirstMarker()(batch, Letters())["first_call"]  # type: ignore[arg-type]
    assert found.tolist() == [3, 0, 0, -1]


@pytest.mark.parametrize(
    "made",
    [
        lambda: Behaviour(pattern="("),
        lambda: FirstMarker(pattern="["),
        lambda: ContrastiveBonus(strength=-1.0),
        lambda: LengthBonus(limit=-1),
        lambda: Category(tags=" "),
        lambda: EarlyCall(k=1.0),
    ],
)
def test_settings_that_mean_nothing_are_refused(made: Any) -> None:
    with pytest.raises(ConfigError):
        made()


def test_the_fading_is_a_cosine() -> None:
    for step in (10, 25, 75):
        expected = 1 + 7 * 0.5 * (1 + math.cos(math.pi * step / 100))
        assert float(alpha(EIGHT, step)[0]) == pytest.approx(expected)
    assert alpha(EIGHT, 130).tolist() == [1.0] * 8
