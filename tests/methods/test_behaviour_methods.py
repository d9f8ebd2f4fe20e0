"""GCPO, Ada-GRPO, ASPO and AEPO as methods: each becomes its base where its idea is off."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bigram import Bigram, random_rollout

from unipo.batch import Batch
from unipo.judge import judge
from unipo.method import Method, diff
from unipo.parts.advantage import LeaveOneOut
from unipo.parts.average import SequenceMean
from unipo.parts.behaviour import EarlyCall, FirstMarker
from unipo.parts.objective import SequenceClipped
from unipo.registry import get_method

GCPO, ADA, ASPO, AEPO = (get_method(n) for n in ("gcpo-geometryzero", "ada-grpo", "aspo-tir", "aepo-infigui"))


def advantage(method: Method, batch: Batch) -> torch.Tensor:
    value: torch.Tensor = judge(method.bound_to(6), batch, Bigram(0)).advantage
    return value


def test_gcpo_without_its_two_rewards_is_grpo() -> None:
    batch = random_rollout(0, 8)
    off = GCPO.but(**{"shaping.0.strength": 0.0, "shaping.1.strength": 0.0})
    assert torch.equal(advantage(off, batch), advantage(get_method("grpo"), batch))
    assert not torch.equal(advantage(GCPO, batch), advantage(off, batch))
    assert {c.path.split(".")[0] for c in diff(get_method("grpo"), GCPO)} == {"shaping"}


def test_gcpo_believes_a_behaviour_that_the_source_gives() -> None:
    """Two sub-groups under different prompts: half were told to construct, whatever they wrote."""
    batch = random_rollout(0, 8)
    told = batch.with_columns("sequence", behaviour=torch.arange(48) % 2 == 0)
    assert judge(GCPO.bound_to(6), told, Bigram(0)).behaviour.tolist() == (torch.arange(48) % 2 == 0).tolist()
    assert not torch.equal(advantage(GCPO, told), advantage(GCPO, batch))


def test_ada_grpo_ends_as_grpo() -> None:
    batch = random_rollout(0, 8)
    known = batch.with_columns(None, text=["<COT>", "<LONG_COT>", "<COT>", "<CODE>"] * 12)
    plain = ADA.but(shaping=())
    last = replace(known, step=50, total_steps=50)
    torch.testing.assert_close(advantage(ADA, last), advantage(plain, last), rtol=0, atol=0)
    first = replace(known, step=1, total_steps=50)
    assert not torch.equal(advantage(ADA, first), advantage(plain, first))


def test_a_group_all_right_in_mixed_formats_keeps_a_signal() -> None:
    batch = random_rollout(0, 8)
    everyone = torch.ones(48, dtype=torch.bool)
    right = batch.with_columns(
        None, reward=torch.ones(48, dtype=torch.float64), scored=everyone, text=(["<COT>"] * 6 + ["<CODE>"] * 2) * 6
    )
    value = judge(ADA, replace(right, step=1, total_steps=50), Bigram(0)).sequence_advantage.view(6, 8)
    assert bool((value[:, :6] < 0).all())
    assert bool((value[:, 6:] > 0).all())
    one = right.with_columns(None, text=["<COT>"] * 48)
    assert not bool((advantage(ADA, replace(one, step=1, total_steps=50)) != 0).any())


@pytest.mark.parametrize("change", [{"delta": 0.0}, {"k": 0.0}])
def test_aspo_without_its_bias_is_dapos_advantage(change: dict[str, float]) -> None:
    batch = random_rollout(0, 8)
    off = ASPO.but(credit=(EarlyCall(**change),))
    plain = ASPO.but(credit=())
    assert torch.equal(advantage(off, batch), advantage(plain, batch))


def test_aspo_without_tools_is_dapos_advantage() -> None:
    batch = random_rollout(0, 8)
    silent = batch.with_columns(None, trainable=torch.ones_like(batch.trainable))
    plain = ASPO.but(credit=())
    assert torch.equal(advantage(ASPO, silent), advantage(plain, silent))
    assert not torch.equal(advantage(ASPO, batch), advantage(plain, batch))


def test_aspo_never_turns_the_sign_of_a_right_response_nor_touches_a_wrong_one() -> None:
    for seed in range(4):
        batch = random_rollout(seed, 8)
        got, plain = advantage(ASPO, batch), advantage(ASPO.but(credit=()), batch)
        assert torch.equal(got.sign(), plain.sign())
        wrong = batch.layout.to_tokens(~(batch.score > 0.5))
        assert torch.equal(got[wrong], plain[wrong])


def test_aspo_may_read_calls_from_the_text() -> None:
    batch = random_rollout(0, 8)
    marked = ASPO.but(credit=(EarlyCall(signal=FirstMarker(pattern=r"\d")),))
    assert int((judge(marked, batch, Bigram(0)).first_call >= 0).sum()) == 48


def test_aepo_is_rloo_with_a_token_clip() -> None:
    assert isinstance(AEPO.advantage, LeaveOneOut)
    rloo = AEPO.but(objective=SequenceClipped(low=0.2, high=0.2, geometric=False), average=SequenceMean())
    assert [c.path for c in diff(get_method("rloo"), rloo)] == ["source.group_size", "shaping"]
