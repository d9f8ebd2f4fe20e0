"""What a policy must know of a `transformers` architecture: its layers made ready, hidden states, output layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from unipo.errors import ConfigError
from unipo.policy import attention, fitting
from unipo.policy.head import HeadSpec
from unipo.policy.norm import patch_norms
from unipo.policy.packing import Plan
from unipo.policy.sight import attention_by_part, embedded, language_model


def causal_of(model: nn.Module) -> PreTrainedModel:
    """The causal language model inside a peft wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[return-value,operator]


def prepare(causal: PreTrainedModel) -> str:
    """Switch to packed attention and faster layers, and switch dropout off: with dropout every ratio is noise.

    Returns why the model keeps its own layers, '' if it does not (see `unipo.policy.fitting`)."""
    causal.set_attn_implementation(attention_by_part(causal, attention.NAME))
    causal.eval()
    for module in causal.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_pdrop", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    patch_norms(causal)
    return fitting.install(causal)


def backbone_hidden(causal: PreTrainedModel, plan: Plan) -> Tensor:
    """[N, d] last hidden states of the packed row."""
    body = language_model(causal)
    if body is causal:
        raise ConfigError(f"{type(causal).__name__} has no separate backbone; unipo needs a ...ForCausalLM model")
    seen = embedded(causal, plan)
    given = {"input_ids": plan.ids[None]} if seen is None else {"inputs_embeds": seen[None]}
    out = body(**given, position_ids=plan.positions[None], use_cache=False, unipo_plan=plan, return_dict=True)
    hidden: Tensor = out.last_hidden_state
    return hidden[0]


def head_spec(config: Any) -> HeadSpec:
    """Logit scaling and soft-capping as this architecture's own forward does them."""
    text = config.get_text_config()
    scale = float(getattr(text, "logit_scale", 1.0) or 1.0) / float(getattr(text, "logits_scaling", 1.0) or 1.0)
    return HeadSpec(softcap=getattr(text, "final_logit_softcapping", None), scale=scale)


def head_weight(causal: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """([V, d] weight, [V] bias or None) of the output layer, adapters on it included."""
    head: Any = causal.get_output_embeddings()
    if head is None:
        raise ConfigError(f"{type(causal).__name__} has no output embeddings")
    return linear_weight(head)


def linear_weight(module: Any) -> tuple[Tensor, Tensor | None]:
    """([out, in] weight, [out] bias or None) of a linear layer, with the active plain LoRA adapters on it added."""
    if not hasattr(module, "base_layer"):
        return module.weight, getattr(module, "bias", None)
    weight, bias = module.base_layer.weight, getattr(module.base_layer, "bias", None)
    if module.disable_adapters or module.merged:
        if module.disable_adapters and module.merged:
            raise ConfigError("adapters are merged into the weights and cannot be switched off: unmerge them first")
        return weight, bias
    for name in module.active_adapters:
        if name not in module.lora_A:
            continue
        if name in module.lora_variant or module.lora_bias.get(name) or module.fan_in_fan_out:
            raise ConfigError(f"adapter {name!r} on {type(module.base_layer).__name__} is not plain LoRA")
        weight = weight + module.scaling[name] * (module.lora_B[name].weight @ module.lora_A[name].weight)
    return weight, bias
