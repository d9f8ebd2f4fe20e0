"""Images in the packed row: the numbers and gradients of the model's own forward."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf

from tests.policy.models import SMALL, VOCAB, gradients
from tests.policy.seeing import IMAGE, PATCHES, PIXELS, make, plain_logp, ragged
from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.policy import sight
from unipo.policy.architecture import backbone_hidden
from unipo.policy.model import Policy
from unipo.policy.norm import patch_norms
from unipo.policy.packing import make_plan
from unipo.policy.spec import PolicySpec
from unipo.signals import with_evidence

KINDS = [("llama", "clip", -2), ("qwen3", "siglip", -1), ("gemma", "clip", [-2, -1])]


def policy_of(model: Any, dtype: torch.dtype = torch.float64) -> Policy:
    return Policy(copy.deepcopy(model).to(dtype), None, PolicySpec(weights=str(dtype).removeprefix("torch.")))


def reference(model: Any, dtype: torch.dtype = torch.float64) -> Any:
    """The plain model; its norms would round float64 to float32 on the way."""
    model = copy.deepcopy(model).to(dtype)
    if dtype == torch.float64:
        patch_norms(model)
    return model


def weighted(logp: torch.Tensor) -> torch.Tensor:
    return (logp * torch.linspace(-1, 2, len(logp), dtype=logp.dtype)).sum()


@pytest.mark.parametrize(("text", "tower", "layer"), KINDS[:2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_log_probs_and_gradients_are_those_of_the_plain_forward(
    text: str, tower: str, layer: int, dtype: torch.dtype, tolerance: float
) -> None:
    start, batch = make(text, tower, layer=layer), ragged()
    model, policy = reference(start, dtype), policy_of(start, dtype)
    expected = plain_logp(model, batch)
    got = policy.columns(batch, torch.ones(batch.layout.n_tokens, dtype=torch.bool))["logp"]
    assert torch.allclose(got, expected, rtol=0, atol=tolerance)
    assert torch.allclose(policy.logp(batch), expected, rtol=0, atol=tolerance)
    theirs, ours = gradients(model, weighted(expected)), gradients(policy.causal, weighted(got))
    assert ours.keys() == theirs.keys()
    assert any("vision_tower" in n for n in ours)
    assert any("multi_modal_projector" in n for n in ours)
    for name, g in theirs.items():
        scale = max(1.0, float(g.abs().max()))
        assert torch.allclose(ours[name], g, rtol=0, atol=10 * tolerance * scale), name


def test_features_of_several_layers_and_scaled_embeddings() -> None:
    text, tower, layer = KINDS[2]
    start, batch = make(text, tower, layer=layer), ragged()
    assert torch.allclose(policy_of(start).logp(batch), plain_logp(reference(start), batch), rtol=0, atol=1e-10)


def test_the_text_layers_are_the_hand_written_ones() -> None:
    assert policy_of(make("qwen3", "siglip")).layers_kept == ""


def test_the_same_gradient_under_any_split() -> None:
    model, batch = make("qwen3", "siglip", layer=-1), ragged()
    whole, parted = policy_of(model), policy_of(model)
    marked = batch.with_columns("token", w=torch.linspace(-1, 2, batch.layout.n_tokens).double())
    everything = torch.ones(batch.layout.n_tokens, dtype=torch.bool)
    expected = gradients(whole.causal, (whole.columns(marked, everything)["logp"] * marked.w).sum())
    parted.causal.zero_grad()
    for piece in marked.split_by_tokens(18):
        logp = parted.columns(piece, torch.ones(piece.layout.n_tokens, dtype=torch.bool))["logp"]
        (logp * piece.w).sum().backward()
    for name, p in parted.causal.named_parameters():
        assert (p.grad is None) == (name not in expected)
        if p.grad is not None:
            assert torch.allclose(p.grad, expected[name], rtol=0, atol=1e-10), name


def test_each_image_is_seen_once_per_group() -> None:
    policy, batch = policy_of(make()), ragged()
    seen: list[int] = []
    policy.causal.model.vision_tower.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    policy.logp(batch)
    assert seen == [3]  # one and two images, of groups of two responses each


def test_images_of_different_sizes_go_through_the_tower_by_size() -> None:
    model = make("llama", "clip").double()
    g = torch.Generator().manual_seed(3)
    a, b = torch.randn(1, 3, PIXELS, PIXELS, generator=g), torch.randn(2, 3, PIXELS, PIXELS, generator=g)
    features = sight.image_features(model, [a, b, a])
    again = sight.image_features(model, [b])
    assert [len(f) for f in features] == [PATCHES, 2 * PATCHES, PATCHES]
    assert torch.allclose(features[1], again[0], atol=1e-12)
    assert torch.equal(features[0], features[2])


@pytest.mark.parametrize(
    ("vision", "towers", "projector"), [("train", True, True), ("projector", False, True), ("frozen", False, False)]
)
def test_how_much_of_the_vision_side_is_trained(vision: str, towers: bool, projector: bool) -> None:
    model = make()
    sight.freeze_vision(model, vision)
    policy, batch = Policy(model, None), ragged()
    logp = policy.columns(batch, torch.ones(batch.layout.n_tokens, dtype=torch.bool))["logp"]
    found = gradients(policy.causal, weighted(logp))
    assert any("vision_tower" in n for n in found) == towers
    assert any("multi_modal_projector" in n for n in found) == projector
    assert any("language_model" in n for n in found)
    with pytest.raises(ConfigError, match=r"policy\.vision"):
        sight.freeze_vision(model, "half")


def test_an_edited_prompt_keeps_its_images() -> None:
    policy, batch = policy_of(make()), ragged()
    longer = with_evidence(batch, [[7, 8], [9], []])
    assert torch.allclose(policy.logp(longer), plain_logp(reference(make()), longer), rtol=0, atol=1e-10)


# -- refusals --------------------------------------------------------------------------------------
def test_placeholders_without_images_are_refused() -> None:
    policy, batch = policy_of(make()), ragged()
    with pytest.raises(DataError, match="the batch has no images"):
        policy.logp(batch.without("images"))
    few = [x if len(x) != 1 else torch.cat([x, x]) for x in batch.images]
    with pytest.raises(DataError, match="prompt 0 of the batch has 4 placeholder tokens, its images need 8"):
        policy.logp(batch.with_columns(None, images=few))


def test_more_placeholders_than_images_are_ordinary_tokens() -> None:
    """A prompt may go on with tokens that were sampled."""
    policy, batch = policy_of(make()), ragged()
    layout = batch.layout
    longer = with_evidence(batch, [[IMAGE], [IMAGE], [IMAGE]])
    plan = make_plan(longer)
    place = sight.placeholders(plan, IMAGE, torch.tensor([PATCHES, 0, 2 * PATCHES]))
    assert len(place) == 3 * PATCHES
    assert place.max() < longer.layout.context_starts[2] + layout.context_lengths[2]
    assert bool(torch.isfinite(policy.logp(longer)).all())


def test_models_of_other_kinds_say_why_not() -> None:
    text = hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**SMALL))
    assert sight.objection(text) == "it is a text model"
    rotary = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    small = {k: v for k, v in SMALL.items() if k != "head_dim"} | {"vocab_size": VOCAB}
    qwen = hf.Qwen2_5_VLForConditionalGeneration(
        hf.Qwen2_5_VLConfig(
            text_config=small | {"rope_parameters": rotary},
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "num_heads": 2,
                "out_hidden_size": 32,
                "intermediate_size": 16,
            },
        )
    )
    assert "M-RoPE" in sight.objection(qwen)
    with pytest.raises(ConfigError, match=r"such as LLaVA .*M-RoPE"):
        sight.check_sight(qwen, {}, lambda plan: None)


def _inputs(images: int = 1) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(9)
    ids = torch.tensor([[7, *[IMAGE] * PATCHES * images, 11, 12]])
    return {"input_ids": ids, "pixel_values": torch.randn(images, 3, PIXELS, PIXELS, generator=g)}


def test_the_check_against_the_models_own_forward() -> None:
    policy = policy_of(make("qwen3", "siglip", layer=-1), torch.float32)
    sight.check_sight(policy.causal, _inputs(2), lambda plan: backbone_hidden(policy.causal, plan))
    batch = ragged()
    before = policy.logp(batch)
    assert torch.equal(before, policy.logp(batch)), "the packed attention is back in place"
    with pytest.raises(ConfigError, match="its processor also gives image_sizes"):
        sight.check_sight(policy.causal, _inputs() | {"image_sizes": torch.ones(1, 2)}, lambda plan: None)


def test_attention_in_both_directions_is_refused_by_numbers() -> None:
    text = SMALL | {"sliding_window": 64, "layer_types": ["full_attention"] * 2}
    model = hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(
            text_config=hf.Gemma3TextConfig(**text),
            vision_config=hf.SiglipVisionConfig(hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=PIXELS, patch_size=8),
            mm_tokens_per_image=PATCHES,
            image_token_index=IMAGE,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    policy = Policy(model, None)
    inputs = _inputs()
    inputs["token_type_ids"] = (inputs["input_ids"] == IMAGE).long()
    with pytest.raises(ConfigError, match="does more: its own forward differs"):
        sight.check_sight(policy.causal, inputs, lambda plan: backbone_hidden(policy.causal, plan))


# -- the batch ---------------------------------------------------------------------------------------
def test_images_travel_with_their_prompts(tmp_path: Any) -> None:
    batch = ragged()
    batch.save(tmp_path / "batch.safetensors")
    loaded = Batch.load(tmp_path / "batch.safetensors")
    pieces = [batch.take_prompts([0]), batch.take_prompts([1, 2])]
    moved = batch.to("cpu")
    for other in (loaded, Batch.concat(pieces), moved, Batch.concat(batch.split_prompts(3))):
        assert len(other.images) == 3
        assert all(torch.equal(a, b) for a, b in zip(other.images, batch.images, strict=True))
    assert [len(x) for x in batch.take_sequences([5]).images] == [2]
    assert next(len(x) for p in batch.split_by_tokens(12) for x in p.images) == 1


def test_a_batch_without_images_saves_as_before(tmp_path: Any) -> None:
    batch = ragged().without("images")
    replace(batch, step=4).save(tmp_path / "b.safetensors")
    assert Batch.load(tmp_path / "b.safetensors").step == 4
