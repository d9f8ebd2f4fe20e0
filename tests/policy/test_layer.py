"""The hand-written layers and norms compute what the model's own do, and step aside where they would not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from tests.policy.models import SMALL, gradients, make, plain_logp, ragged
from unipo.policy.loading import add_lora
from unipo.policy.model import Policy
from unipo.policy.norm import patch_norms, rms_norm
from unipo.policy.products import forward_product, input_gradient, weight_gradient
from unipo.policy.spec import LoraSpec, PolicySpec

FITTING = ["qwen3", "qwen2", "llama", "mistral-window"]


def own_layers(policy: Policy) -> Policy:
    """The same policy through the layers of `transformers`."""
    for layer in policy.causal.base_model.layers:  # type: ignore[union-attr]
        layer.__dict__.pop("forward", None)
    return policy


def pair(name: str, **spec: Any) -> tuple[Policy, Policy]:
    weights = {"float64": torch.float64}.get(spec.get("weights", ""), torch.float32)
    model = make(name).to(weights)
    return Policy(copy.deepcopy(model), None, PolicySpec(**spec)), own_layers(Policy(model, None, PolicySpec(**spec)))


def scored(policy: Policy, seed: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    batch = ragged()
    logp = policy.columns(batch, batch.trainable)["logp"]
    g = torch.randn(24, generator=torch.Generator().manual_seed(seed), dtype=logp.dtype)
    return logp.detach(), gradients(policy.model, (logp * g).sum())


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], atol: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("name", FITTING)
def test_in_float64_layer_and_modules_agree_to_1e_10(name: str) -> None:
    # Both sides use unipo's RMSNorm, which is float64 throughout; that of transformers rounds to float32.
    fast, own = pair(name, weights="float64")
    assert fast.layers_kept == ""
    (a, da), (b, db) = scored(fast), scored(own)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert_same(da, db, 1e-10)


@pytest.mark.parametrize("bias", [False, True])
def test_biases_anywhere_are_carried(bias: bool) -> None:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(
        hf.LlamaConfig(**SMALL, attention_bias=bias, mlp_bias=not bias)
    ).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    fast = Policy(copy.deepcopy(model), None, PolicySpec(weights="float64"))
    assert fast.layers_kept == ""
    (a, da), (b, db) = scored(fast), scored(own_layers(Policy(model, None, PolicySpec(weights="float64"))))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert any(name.endswith("bias") for name in da)
    assert_same(da, db, 1e-10)


def test_recomputing_in_the_backward_gives_the_same_gradients() -> None:
    fast, _ = pair("qwen3")
    again = Policy(copy.deepcopy(fast.model), None, PolicySpec(checkpointing=True))
    assert again.layers_kept == ""
    assert_same(scored(again)[1], scored(fast)[1], 1e-6)


def test_recomputing_keeps_fewer_activations() -> None:
    kept = {}
    for checkpointing in (False, True):
        policy = Policy(make("qwen3"), None, PolicySpec(checkpointing=checkpointing))
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.numel()) or x, lambda x: x):
            policy.columns(ragged(), ragged().trainable)
        kept[checkpointing] = sum(sizes)
    assert kept[True] < 0.7 * kept[False]


def test_bfloat16_stays_as_close_to_float32_as_autocast_through_the_modules() -> None:
    exact, own = pair("qwen3", compute="bfloat16")
    fast, _ = pair("qwen3", compute="bfloat16")
    exact.spec = PolicySpec()
    (a, da), (b, db), (c, dc) = scored(exact), scored(fast), scored(own)
    assert float((b - a).abs().max()) <= 2 * float((c - a).abs().max()) + 1e-3
    scale = max(float(g.abs().max()) for g in da.values())
    for name in da:
        assert float((db[name] - da[name]).abs().max()) <= 2 * float((dc[name] - da[name]).abs().max()) + 0.01 * scale


def test_frozen_weights_get_no_gradient_and_change_no_other() -> None:
    fast, _ = pair("qwen3")
    expected = scored(fast)[1]
    frozen = [n for n, _ in fast.named_parameters() if "q_proj" in n or "down_proj" in n or "layernorm" in n]
    for name, p in fast.model.named_parameters():
        p.requires_grad_(name not in frozen)
    found = scored(fast)[1]
    assert set(found) == set(expected) - set(frozen)
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name])


def test_two_backwards_through_one_graph_agree() -> None:
    policy, _ = pair("qwen3")
    batch = ragged()
    hidden = policy.causal.base_model.layers[0]  # type: ignore[union-attr,index]
    weight: Tensor = hidden.mlp.gate_proj.weight  # type: ignore[union-attr,assignment]
    # Entropy makes the head keep its probabilities apart, so that the graph may be used twice.
    columns = policy.columns(batch, batch.trainable, entropy=True)
    loss = columns["logp"].sum() + columns["entropy"].sum()
    (first,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (second,) = torch.autograd.grad(loss, weight)
    assert torch.equal(first, second)


def test_a_copy_computes_with_its_own_weights() -> None:
    policy, _ = pair("llama")
    twin = copy.deepcopy(policy.model)
    before = policy.logp(ragged())
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(0)
    policy.reference = twin
    assert torch.equal(policy.logp(ragged(), "reference"), before)


def test_hooks_on_modules_inside_a_layer_are_still_called() -> None:
    policy, own = pair("qwen3")
    seen: list[int] = []
    module: Any = policy.causal.base_model.layers[1].mlp.down_proj  # type: ignore[union-attr,index]
    handle = module.register_forward_hook(lambda *_: seen.append(1))
    a = scored(policy)[0]
    assert seen == [1]
    handle.remove()
    assert scored(policy)[0].shape == a.shape
    assert seen == [1]
    torch.testing.assert_close(a, scored(own)[0], rtol=0, atol=1e-5)


def test_adapters_added_later_are_not_bypassed() -> None:
    pytest.importorskip("peft")
    policy, _ = pair("qwen3")
    adapted = add_lora(policy.model, LoraSpec(rank=2))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_()
    policy.model = adapted
    batch = ragged()
    expected = plain_logp(merged_twin(adapted), batch)
    torch.testing.assert_close(policy.logp(batch), expected.detach(), rtol=0, atol=1e-5)


def merged_twin(adapted: Any) -> Any:
    """A plain model with the adapters merged in."""
    merged = copy.deepcopy(adapted).merge_and_unload()
    twin = make("qwen3")
    twin.load_state_dict(merged.state_dict())
    return twin


@pytest.mark.parametrize("name", ["gpt2", "gemma", "gemma2", "gemma3", "mixture"])
def test_another_architecture_keeps_its_layers_and_says_why(name: str) -> None:
    assert Policy(make(name), None).layers_kept != ""


class _Louder(hf.models.llama.modeling_llama.LlamaDecoderLayer):
    """Has the parts of a Llama layer, but adds 1 % to what it returns."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return 1.01 * super().forward(*args, **kwargs)


def test_the_same_parts_with_another_sum_are_found_out() -> None:
    model = make("llama")
    model.model.layers[1].__class__ = _Louder
    plain = plain_logp(copy.deepcopy(model), ragged())
    policy = Policy(model, None)
    assert "differs" in policy.layers_kept
    torch.testing.assert_close(policy.logp(ragged()), plain.detach(), rtol=0, atol=1e-5)


def test_rms_norm_passes_gradcheck_and_equals_its_formula() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 4, generator=g, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, generator=g, dtype=torch.float64, requires_grad=True)
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * w
    torch.testing.assert_close(rms_norm(x, w, 1e-3), expected, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-3), (x, w))


def test_rms_norm_of_zeros_is_zero_with_finite_gradients() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    w = torch.ones(4, requires_grad=True)
    rms_norm(x, w, 1e-6).sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


class _OddRMSNorm(nn.Module):
    """Named like an RMSNorm, but divides by the mean absolute value."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.abs().mean(-1, keepdim=True) + self.eps) * self.weight


def test_only_norms_that_agree_are_replaced() -> None:
    assert patch_norms(nn.ModuleList([_OddRMSNorm()])) == 0
    for name, norms in (("llama", 5), ("qwen3", 9), ("gemma", 5), ("gemma3", 13)):
        assert patch_norms(make(name)) == norms


@pytest.mark.parametrize("n", [3, 700])
def test_products_are_exact_for_small_and_large_factors(n: int) -> None:
    g = torch.Generator().manual_seed(0)
    x, w, up = (torch.randn(*shape, generator=g) for shape in ((n, 160), (96, 160), (n, 96)))
    b, other = torch.randn(96, generator=g), torch.randn(n, 160, generator=g)
    wide = [t.double() for t in (x, w, up, b, other)]
    close = {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(forward_product(x, w, b).double(), wide[0] @ wide[1].T + wide[3], **close)
    torch.testing.assert_close(input_gradient(up, w).double(), wide[2] @ wide[1], **close)
    torch.testing.assert_close(input_gradient(up, w, other.clone()).double(), wide[2] @ wide[1] + wide[4], **close)
    torch.testing.assert_close(weight_gradient(up, x, torch.float32).double(), wide[2].T @ wide[0], **close)
