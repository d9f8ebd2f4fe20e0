"""GRPO with reshaped rewards: what each becomes in its limits, and what the past does to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from bigram import Bigram, random_rollout

from unipo.batch import Batch
from unipo.judge import judge, remember
from unipo.method import Method
from unipo.parts.components import ComponentsNormalised, ComponentSum
from unipo.registry import get_method

GRPO = get_method("grpo")


def advantages(method: Method, seed: int = 0, **columns: Any) -> torch.Tensor:
    batch = random_rollout(seed, 4)
    for part in method.selection:
        batch = batch.take_prompts(part(batch))
    return judge(method, batch.with_columns(None, **columns), Bigram(seed)).advantage


@pytest.mark.parametrize("name", ["unlikeliness-reward", "hapo", "otc-po", "mo-grpo"])
def test_without_its_shaping_it_is_grpo(name: str) -> None:
    method = get_method(name)
    plain = GRPO.but(advantage=method.advantage, selection=method.selection)
    assert torch.equal(advantages(method.but(shaping=())), advantages(plain))
    assert not torch.equal(advantages(method), advantages(plain)) or name == "hapo"


def test_unlikeliness_without_beta_and_hapo_without_weight_are_grpo_bit_for_bit() -> None:
    unlikely = get_method("unlikeliness-reward")
    assert torch.equal(advantages(unlikely.but(**{"shaping.0.beta": 0.0})), advantages(unlikely.but(shaping=())))
    hapo = get_method("hapo").but(**{"shaping.0.weight": 0.0})
    memory = {"history_length": {str(i): [2, 1] for i in range(6)}}
    batch = replace(random_rollout(0, 4), states=memory)
    assert torch.equal(judge(hapo, batch, Bigram(0)).advantage, judge(GRPO, batch, Bigram(0)).advantage)


def test_hapo_follows_its_record_from_batch_to_batch() -> None:
    method = get_method("hapo")
    first = replace(random_rollout(0, 4))
    right = first.scored & (first.score >= 1)
    kept = remember(method, judge(method, first, Bigram(0)))
    assert kept.states["history_length"].keys() == {str(p) for p in first.layout.seq_prompt[right].tolist()}
    again = replace(random_rollout(0, 4), states=kept.states)
    assert not torch.equal(judge(method, again, Bigram(0)).advantage, judge(method, first, Bigram(0)).advantage)


def test_otc_without_tools_is_grpo() -> None:
    def writing(batch: Batch) -> Batch:
        return batch.with_columns(None, trainable=torch.ones_like(batch.trainable))

    otc, batch = get_method("otc-po"), writing(random_rollout(0, 4))
    torch.testing.assert_close(
        judge(otc, batch, Bigram(0)).advantage, judge(GRPO, batch, Bigram(0)).advantage, rtol=0, atol=1e-12
    )


def test_one_component_is_grpo_on_it() -> None:
    batch = random_rollout(0, 4)
    own = [float(parts.get("form", 0.0)) for parts in batch.reward_parts]
    expected = advantages(GRPO, reward=torch.tensor(own, dtype=torch.float64))
    one = get_method("mo-grpo").but(shaping=(ComponentSum(names=("form",)),))
    torch.testing.assert_close(advantages(one), expected, rtol=0, atol=1e-12)
    normalised = one.but(shaping=(), advantage=ComponentsNormalised(names=("form",)))
    torch.testing.assert_close(advantages(normalised), expected, rtol=0, atol=1e-12)


def test_the_old_policy_is_asked_once_where_ranks_need_it() -> None:
    policy = Bigram(0)
    judge(get_method("unlikeliness-reward"), random_rollout(0, 4), policy)
    assert [weights for weights, _ in policy.calls] == ["policy"]
