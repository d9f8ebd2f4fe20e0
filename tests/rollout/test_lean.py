"""The lean decoder computes what the model computes, or is not used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from tests.policy.models import CONFIGS, SMALL, VOCAB, make
from tests.policy.test_layer import _Louder
from tests.rollout.test_local_engine import ENDS, as_batch, requests
from unipo.policy.loading import add_lora
from unipo.policy.model import Policy
from unipo.policy.spec import LoraSpec, PolicySpec
from unipo.rollout import local
from unipo.rollout.agree import largest_difference
from unipo.rollout.decoder import ModelDecoder
from unipo.rollout.engine import Request, Sampling
from unipo.rollout.lean import LeanDecoder, decoder_for
from unipo.rollout.local import LocalEngine

LEAN = ["qwen3", "qwen2", "llama", "granite"]


def gap(policy: Policy, engine: LocalEngine) -> float:
    asked = requests()
    groups = engine.generate(asked, Sampling(max_tokens=20))
    said = torch.cat([r.logp for g in groups for r in g])
    return float((said - policy.logp(as_batch(asked, groups))).abs().max())


@pytest.mark.parametrize("name", LEAN)
@pytest.mark.parametrize("weights", ["float32", "float64"])
def test_logits_agree_with_the_models(name: str, weights: str) -> None:
    dtype, bound = {"float32": (torch.float32, 1e-5), "float64": (torch.float64, 1e-10)}[weights]
    policy = Policy(make(name).to(dtype), None, PolicySpec(weights=weights))
    # The rotary tables are float32 in both, so only the arithmetic after them is compared.
    difference, objection = largest_difference(policy, LeanDecoder(policy, 40, 4), 40)
    assert objection == ""
    assert difference <= bound


@pytest.mark.parametrize("name", LEAN)
@pytest.mark.parametrize("rows", [64, 3])
def test_tokens_are_those_of_the_model_decoder(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(make(name), None)
    engine = LocalEngine(policy, rows, ENDS)
    lean = engine.generate(requests(), Sampling(max_tokens=20))
    assert engine.stats.decoder == "lean"
    monkeypatch.setattr(local, "decoder_for", lambda policy, longest, rows: ModelDecoder(policy))
    general = engine.generate(requests(), Sampling(max_tokens=20))
    assert engine.stats.decoder == "model"
    for a, b in zip((r for g in lean for r in g), (r for g in general for r in g), strict=True):
        assert torch.equal(a.tokens, b.tokens)
        torch.testing.assert_close(a.logp, b.logp, rtol=0, atol=1e-5)
        torch.testing.assert_close(a.entropy, b.entropy, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - set(LEAN)))
def test_other_models_are_decoded_by_their_own_layers_and_the_stats_say_why(name: str) -> None:
    engine = LocalEngine(Policy(make(name), None), 8, ())
    engine.generate([Request([1, 2, 3], 1)], Sampling(max_tokens=10))
    assert engine.stats.decoder.startswith("model (")


def test_a_window_is_lean_until_a_sequence_outgrows_it() -> None:
    policy = Policy(hf.AutoModelForCausalLM.from_config(hf.MistralConfig(**SMALL, sliding_window=12)).float(), None)
    assert decoder_for(policy, 13, 1).name == "model (attention is windowed to 12 positions)"
    assert decoder_for(policy, 12, 1).name == "lean"
    assert decoder_for(policy, 13, 1).name == "model (attention is windowed to 12 positions)"


def test_rotary_tables_that_depend_on_the_length_are_refused() -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config = hf.LlamaConfig(**SMALL | {"max_position_embeddings": 16}, rope_parameters=scaling)
    policy = Policy(hf.AutoModelForCausalLM.from_config(config).float(), None)
    assert "differ" in decoder_for(policy, 64, 1).name


def test_the_same_parts_with_another_sum_are_refused() -> None:
    model = make("llama")
    model.model.layers[1].__class__ = _Louder
    policy = Policy(model, None)
    assert "differ" in decoder_for(policy, 20, 1).name
    assert gap(policy, LocalEngine(policy, 64, ENDS)) < 2e-5


def test_adapters_are_merged() -> None:
    pytest.importorskip("peft")
    policy = Policy(add_lora(make("qwen3"), LoraSpec(rank=4)), None, PolicySpec(lora=LoraSpec(rank=4)))
    engine = LocalEngine(policy, 64, ENDS)
    assert gap(policy, engine) < 2e-5
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.2 * torch.randn_like(p))
    assert gap(policy, engine) < 2e-5
    assert engine.stats.decoder == "lean"


def test_an_adapter_that_is_not_plain_lora_is_refused() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, use_dora=True, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = Policy(peft.get_peft_model(make("qwen3"), config), None)
    assert "not plain LoRA" in decoder_for(policy, 20, 1).name


def test_every_generate_reads_the_weights_as_they_are_now() -> None:
    policy = Policy(make("qwen3"), None)
    engine = LocalEngine(policy, 64, ENDS)
    assert gap(policy, engine) < 2e-5
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.1 * torch.randn_like(p))
    assert gap(policy, engine) < 2e-5


def test_bfloat16_products_stay_close_to_the_trainers() -> None:
    policy = Policy(make("qwen3"), None, PolicySpec(compute="bfloat16"))
    engine = LocalEngine(policy, 64, ENDS)
    assert gap(policy, engine) < 0.05
    assert engine.stats.decoder == "lean"
    assert not engine.exact


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mistral-window", "mixture"])
def test_bfloat16_through_the_models_own_layers_stays_close_too(name: str) -> None:
    policy = Policy(make(name), None, PolicySpec(compute="bfloat16"))
    assert gap(policy, LocalEngine(policy, 3, ENDS)) < 0.1


def test_large_weights_go_through_the_packed_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unipo.rollout.lean.PACKED_FROM", 1)
    policy = Policy(make("qwen2"), None)  # biases on q, k and v
    assert gap(policy, LocalEngine(policy, 64, ENDS)) < 2e-5
    half = Policy(make("qwen2"), None, PolicySpec(compute="bfloat16"))
    assert gap(half, LocalEngine(half, 64, ENDS)) < 0.05


def test_a_row_that_used_up_its_budget_never_runs_past_the_models_positions() -> None:
    # GPT-2 has a table of 128 positions. With refills, rows reach the last one at different steps.
    policy = Policy(make("gpt2"), None)
    asked: list[Any] = [Request([i % VOCAB] * (128 - 12), 3, i) for i in range(3)]
    groups = LocalEngine(policy, 4, (3, 50, 60)).generate(asked, Sampling(max_tokens=12))
    assert [len(g) for g in groups] == [3, 3, 3]
    assert max(len(r.tokens) for g in groups for r in g) == 12


def test_more_tokens_than_the_buffers_first_hold() -> None:
    policy = Policy(make("llama"), None)
    engine = LocalEngine(policy, 3, (5,))
    asked = [Request([1, 2], 4, 9)]
    groups = engine.generate(asked, Sampling(max_tokens=100))
    assert max(len(r.tokens) for r in groups[0]) > 64
    said = torch.cat([r.logp for r in groups[0]])
    torch.testing.assert_close(said, policy.logp(as_batch(asked, groups)), rtol=0, atol=2e-5)
