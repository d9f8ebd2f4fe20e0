"""The packed forward computes what forwarding each sequence alone computes."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.policy.models import CONFIGS, VOCAB, gradients, make, plain_logp, ragged
from unipo.batch import Batch
from unipo.errors import ConfigError, DataError, MissingExtra
from unipo.evaluate.harness import _loading
from unipo.layout import Layout
from unipo.policy.attention import dense_attention, flex_attention, packed_attention, packed_rows
from unipo.policy.loading import adapter_base, add_lora
from unipo.policy.model import Policy, load_policy
from unipo.policy.packing import make_plan
from unipo.policy.spec import LoraSpec, PolicySpec
from unipo.push import pack
from unipo.starter import starter_path

ALL = torch.ones(24, dtype=torch.bool)


def packed(model: Any, batch: Batch, required: torch.Tensor = ALL, **spec: Any) -> tuple[Policy, torch.Tensor]:
    policy = Policy(model, None, PolicySpec(**spec))
    return policy, policy.columns(batch, required)["logp"]


@pytest.mark.parametrize("name", CONFIGS)
def test_log_probs_and_gradients_equal_the_plain_forward(name: str) -> None:
    batch, model = ragged(), make(name)
    g = torch.randn(24, generator=torch.Generator().manual_seed(1))
    plain = plain_logp(model, batch)
    expected = gradients(model, (plain * g).sum())
    _, ours = packed(model, batch)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)
    found = gradients(model, (ours * g).sum())
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-5, msg=parameter)


@pytest.mark.parametrize("name", ["qwen3", "llama", "gpt2", "gemma3", "qwen2"])
def test_in_float64_grouped_and_alone_agree_to_1e_10(name: str) -> None:
    # transformers' own RMSNorm and softmax round to float32 whatever the weights; through the policy both sides are
    # float64, and what is compared is the shared prompt: the whole batch against each sequence as a batch of its own.
    batch = ragged()
    g = torch.randn(24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    policy, whole = packed(make(name).double(), batch, weights="float64")
    expected = gradients(policy.model, (whole * g).sum())
    alone = [batch.take_sequences([s]) for s in range(7) if int(batch.layout.seq_lengths[s])]
    parts = torch.cat([policy.columns(b, b.trainable)["logp"] for b in alone])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-10)
    for parameter, gradient in gradients(policy.model, (parts * g).sum()).items():
        torch.testing.assert_close(gradient, expected[parameter], rtol=0, atol=1e-10, msg=parameter)


def test_a_response_sees_nothing_of_its_siblings() -> None:
    batch = ragged()
    policy, before = packed(make("qwen3"), batch)
    tokens = batch.tokens.clone()
    tokens[:3] = (tokens[:3] + 1) % VOCAB  # the first response of the first prompt
    after = policy.columns(batch.with_columns(None, tokens=tokens), ALL)["logp"]
    assert not torch.equal(after[:3], before[:3])
    assert torch.equal(after[3:], before[3:])


def test_a_prompt_reaches_all_of_its_responses_and_no_other() -> None:
    batch = ragged()
    policy, before = packed(make("qwen3"), batch)
    context = batch.context.clone()
    context[0] = (context[0] + 1) % VOCAB
    after = policy.columns(batch.with_columns(None, context=context), ALL)["logp"]
    assert bool((after[:8] != before[:8]).all())
    assert torch.equal(after[8:], before[8:])


def test_positions_that_run_on_across_responses_would_be_noticed() -> None:
    batch, model = ragged(), make("qwen3")
    plain = plain_logp(model, batch)
    policy, right = packed(model, batch)
    plan = make_plan(batch)
    wrong = replace(plan, positions=torch.arange(plan.n_positions))
    logp, _ = policy._logp(policy.model, policy.read_hidden(policy.model, wrong), wrong, False)
    assert float((right - plain).abs().max()) < 1e-5
    assert float((logp - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_only_required_tokens_are_computed_and_their_gradient_is_the_same(seed: int) -> None:
    batch = ragged()
    required = torch.rand(24, generator=torch.Generator().manual_seed(seed)) < 0.4
    policy, whole = packed(make("qwen3"), batch)
    expected = gradients(policy.model, whole[required].sum())
    part = policy.columns(batch, required)["logp"]
    torch.testing.assert_close(part[required], whole[required], rtol=0, atol=2e-6)
    assert bool((part[~required] == 0).all())
    for name, gradient in gradients(policy.model, part.sum()).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_a_group_costs_its_prompt_once_and_no_sequence_its_last_position() -> None:
    layout = Layout.of([10] * 8, [8], [1000])
    batch = Batch.of(
        layout,
        context=torch.zeros(1000, dtype=torch.int64),
        tokens=torch.zeros(80, dtype=torch.int64),
        trainable=torch.ones(80, dtype=torch.bool),
    )
    assert make_plan(batch).n_positions == 1000 + 8 * 9  # eight copies would be 8080
    first_only = layout.token_position == 0
    assert make_plan(batch, first_only).n_positions == 1000


@pytest.mark.parametrize("kv", [1, 2, 4])
def test_pieces_dense_and_flex_attention_agree(kv: int) -> None:
    batch = ragged()
    plan = make_plan(batch)
    g = torch.Generator().manual_seed(0)
    q = torch.randn(plan.n_positions, 4, 8, generator=g, dtype=torch.float64, requires_grad=True)
    k, v = (
        torch.randn(plan.n_positions, kv, 8, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    up = torch.randn(plan.n_positions, 4, 8, generator=g, dtype=torch.float64)
    dense = dense_attention(q, k, v, plan, 0.3)
    pieces = packed_rows(q, k, v, plan, 0.3)
    torch.testing.assert_close(pieces, dense, rtol=0, atol=1e-12)
    for a, b in zip(torch.autograd.grad(pieces, (q, k, v), up), torch.autograd.grad(dense, (q, k, v), up), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    flex = flex_attention(*(x.detach().float() for x in (q, k, v)), plan, 0.3)  # its backward exists on a GPU only
    torch.testing.assert_close(flex, dense.float(), rtol=0, atol=1e-5)


def test_gradient_checkpointing_changes_nothing() -> None:
    batch, model = ragged(), make("qwen3")
    policy, ours = packed(copy.deepcopy(model), batch)
    expected = gradients(policy.model, ours.sum())
    again, logp = packed(copy.deepcopy(model), batch, checkpointing=True)
    torch.testing.assert_close(logp, ours, rtol=0, atol=1e-6)
    for name, gradient in gradients(again.model, logp.sum()).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_bfloat16_is_close_and_keeps_float32_log_probs() -> None:
    batch, model = ragged(), make("qwen3")
    _, ours = packed(copy.deepcopy(model), batch)
    _, half = packed(copy.deepcopy(model), batch, compute="bfloat16")
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, ours, rtol=0, atol=0.05)


def test_adapters_train_alone_and_switch_off_for_the_reference() -> None:
    pytest.importorskip("peft")
    batch, model = ragged(), make("qwen3")
    before = plain_logp(model, batch).detach()
    policy = Policy(add_lora(model, LoraSpec(rank=4)), None, PolicySpec(lora=LoraSpec(rank=4)))
    with torch.no_grad():
        for name, p in policy.named_parameters():
            assert "lora" in name
            p.add_(0.1 * torch.randn_like(p))
    policy.make_reference()
    moved = policy.columns(batch, ALL)["logp"]
    assert float((moved - before).abs().max()) > 1e-2
    torch.testing.assert_close(policy.logp(batch, "reference"), before, rtol=0, atol=1e-5)
    moved.sum().backward()
    assert all(p.grad is not None for p in policy.parameters())


def moved_adapters(below: str, above: Path) -> Policy:
    """Adapters on a model, moved and saved."""
    torch.manual_seed(0)
    policy = Policy(add_lora(load_policy(PolicySpec(model=below)).model, LoraSpec(rank=4)), None, PolicySpec())
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.02 * torch.randn_like(p))
    policy.save(above)
    load_policy(PolicySpec(model=below)).tokenizer.save_pretrained(above)
    return policy


def test_saved_adapters_are_loaded_with_the_model_they_were_trained_on(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    batch, below, above = ragged(), str(tmp_path / "below"), str(tmp_path / "above")
    shutil.copytree(starter_path(), below)
    policy = moved_adapters(below, Path(above))
    again = load_policy(PolicySpec(model=above))
    assert not again.adapted
    assert all(p.requires_grad for p in again.parameters())  # peft had frozen them
    torch.testing.assert_close(again.logp(batch), policy.logp(batch), rtol=0, atol=1e-4)
    assert float((again.logp(batch) - load_policy(PolicySpec(model=below)).logp(batch)).abs().max()) > 1e-2
    assert adapter_base(above) == below
    shutil.move(below, tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=f"{above} holds adapters of {below}, which is needed too"):
        load_policy(PolicySpec(model=above))


def test_adapters_on_adapters_are_refused_with_how_to_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    moved_adapters(str(starter_path()), Path("once"))
    with pytest.raises(ConfigError, match="once holds adapters, and adapters on adapters would be another") as refusal:
        load_policy(PolicySpec(model="once", lora=LoraSpec(rank=4)))
    told = str(refusal.value).partition('python -c "')[2].removesuffix('"')
    exec(told, {})
    batch, whole = ragged(), load_policy(PolicySpec(model="merged", lora=LoraSpec(rank=4)))
    once = load_policy(PolicySpec(model="once"))
    torch.testing.assert_close(whole.logp(batch), once.logp(batch), rtol=0, atol=1e-4)
    moved_adapters("once", Path("twice"))  # made elsewhere, or before they were refused
    config = json.loads(Path("twice/adapter_config.json").read_text())
    Path("twice/adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "once"}))
    for use in (_loading, pack):
        with pytest.raises(ConfigError, match=r"Make one whole model of twice first.*PolicySpec\(model='twice'\)"):
            use("twice")


def test_adapters_without_their_package_are_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"training adapters needs the package 'peft'.*unipo\[lora\]"):
        load_policy(PolicySpec(model="not/there", lora=LoraSpec(rank=4)))
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "not/there"}')
    with pytest.raises(MissingExtra, match="loading adapters needs the package 'peft'"):
        load_policy(PolicySpec(model=str(tmp_path)))


def test_a_dtype_that_nothing_computes_in_is_refused() -> None:
    for given in ({"compute": "float64"}, {"weights": "float16"}):
        with pytest.raises(ConfigError, match="is not one of float32, bfloat16"):
            PolicySpec(**given)


def test_a_frozen_reference_stays_and_an_averaged_one_follows() -> None:
    batch = ragged()
    for kind in ("frozen", "ema"):
        policy = Policy(make("llama"), None, PolicySpec(reference=kind, reference_decay=0.5))
        start = policy.logp(batch)
        policy.make_reference()
        first = policy.parameters()[0].detach().clone()
        with torch.no_grad():
            for p in policy.parameters():
                p.add_(0.1)
        policy.update_reference()
        reference = policy.reference
        assert reference is not None
        if kind == "frozen":
            assert torch.equal(policy.logp(batch, "reference"), start)
        else:
            torch.testing.assert_close(next(reference.parameters()), first + 0.05)


def test_a_prompt_without_tokens_is_refused() -> None:
    batch = ragged()
    lengths = batch.layout.context_lengths.clone()
    gone = int(lengths[1])
    lengths[1] = 0
    start = int(batch.layout.context_starts[1])
    context = torch.cat([batch.context[:start], batch.context[start + gone :]])
    layout = Layout.of(batch.layout.seq_lengths, batch.layout.group_sizes, lengths)
    empty = replace(batch.without("context"), layout=layout).with_columns(None, context=context)
    with pytest.raises(DataError, match="prompt 1 of the batch has no tokens"):
        packed(make(next(iter(CONFIGS))), empty)


def test_attention_dropout_is_refused() -> None:
    one = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ConfigError, match=r"attention dropout 0\.1 is not supported"):
        packed_attention(torch.nn.Module(), one, one, one, None, dropout=0.1, unipo_plan=object())
