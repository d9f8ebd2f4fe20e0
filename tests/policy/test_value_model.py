"""The value model reads what the policy reads, packed or alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.policy.models import make, ragged
from unipo.batch import Batch
from unipo.errors import CheckpointError
from unipo.policy.model import Policy
from unipo.policy.spec import PolicySpec
from unipo.policy.value import ValueModel

NAMES = ["qwen3", "gpt2", "gemma2"]


def randomised(value: ValueModel) -> ValueModel:
    torch.manual_seed(3)
    with torch.no_grad():
        for p in value.head.parameters():
            p.normal_()
    return value


def alone(value: ValueModel, batch: Batch) -> Tensor:
    """[T] every sequence by itself: the head on the state before each token, through transformers' own forward."""
    layout, out = batch.layout, []
    contexts = batch.context.split(layout.context_lengths.tolist())
    plain = make_plain(value)
    for s, response in enumerate(batch.tokens.split(layout.seq_lengths.tolist())):
        if len(response):
            context = contexts[int(layout.seq_prompt[s])]
            hidden = plain(torch.cat([context, response])[None]).last_hidden_state[0]
            out.append(value.head(hidden[len(context) - 1 : -1]))
    return torch.cat(out)


def make_plain(value: ValueModel) -> torch.nn.Module:
    import copy

    model = copy.deepcopy(value.causal)
    model.set_attn_implementation("eager")
    return model.base_model


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_values_are_read_before_each_token(name: str, shared: bool) -> None:
    value = randomised(ValueModel(Policy(make(name), None), shared))
    batch = ragged()
    expected = alone(value, batch)
    torch.testing.assert_close(value.values(batch), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(value.live(batch, torch.ones(len(expected)).bool()), expected, rtol=0, atol=2e-5)


def test_micro_batches_give_the_same_values() -> None:
    policy = Policy(make("qwen3"), None, PolicySpec(micro_tokens=12))
    value = randomised(ValueModel(policy))
    expected = alone(value, ragged())
    torch.testing.assert_close(value.values(ragged()), expected, rtol=0, atol=2e-5)


def test_before_it_has_learned_every_value_is_zero() -> None:
    assert not bool((ValueModel(Policy(make("qwen3"), None)).values(ragged()) != 0).any())


def test_only_required_tokens_have_values_and_gradient() -> None:
    value = randomised(ValueModel(Policy(make("qwen3"), None)))
    batch = ragged()
    required = torch.arange(batch.layout.n_tokens) % 3 == 0
    live = value.live(batch, required)
    assert not bool((live[~required] != 0).any())
    torch.testing.assert_close(live[required], value.values(batch)[required], rtol=0, atol=1e-6)


def test_its_own_backbone_moves_without_the_policy() -> None:
    policy = Policy(make("qwen3"), None)
    value = randomised(ValueModel(policy))
    value.values(ragged())
    value.live(ragged(), torch.ones(ragged().layout.n_tokens).bool()).sum().backward()
    named = dict(value.named_parameters())
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in named.values())
    assert all(p.grad is None for p in policy.parameters())
    ours = {p.data_ptr() for p in named.values()}
    assert not ours & {p.data_ptr() for p in policy.parameters()}


def test_a_shared_backbone_gets_gradient_from_values_and_log_probs_of_one_pass() -> None:
    policy, batch = Policy(make("qwen3"), None), ragged()
    value = randomised(ValueModel(policy, shared=True))
    everything = torch.ones(batch.layout.n_tokens).bool()
    columns = policy.columns(batch, everything, value=value.head)
    torch.testing.assert_close(columns["live_value"].detach(), value.values(batch), rtol=0, atol=1e-6)
    torch.testing.assert_close(columns["logp"].detach(), policy.logp(batch), rtol=0, atol=1e-6)
    columns["live_value"].sum().backward()
    assert any(bool((p.grad != 0).any()) for p in policy.parameters() if p.grad is not None)
    assert [n for n, _ in value.named_parameters()] == ["value.weight", "value.bias"]


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_saved_comes_back_bit_for_bit(shared: bool, tmp_path: Path) -> None:
    value = randomised(ValueModel(Policy(make("qwen3"), None), shared))
    value.save(tmp_path / "value")
    other = ValueModel(Policy(make("qwen3", seed=1), None), shared)
    other.load(tmp_path / "value")
    for (name, a), (_, b) in zip(value.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    value = ValueModel(Policy(make("qwen3"), None))
    with pytest.raises(CheckpointError, match="written without a value model"):
        value.load(tmp_path)
    value.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not fit this value model: value\.backbone"):
        ValueModel(Policy(make("gpt2"), None)).load(tmp_path)


def test_adapters_on_the_policy_leave_the_value_model_whole(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from unipo.policy.model import load_policy
    from unipo.policy.spec import LoraSpec
    from unipo.starter import starter_path

    policy = load_policy(PolicySpec(model=str(starter_path()), lora=LoraSpec(rank=2)))
    own = ValueModel(policy)
    assert not any("lora" in n for n, _ in own.named_parameters())
    shared = randomised(ValueModel(policy, shared=True))
    assert bool((shared.values(ragged()) != 0).any())
