"""Images in prompts: features of the vision tower in place of the placeholder tokens of the packed row.

Of an image-and-text model the text model runs over the packed row like any other; what it is fed on a placeholder is
what `get_image_features` made of the image.  A prompt is stored once per group, so its images are seen once per group
too, and gradients of all responses flow back through the same features.

Served is the LLaVA kind: one feature vector per placeholder, ordinary positions, causal attention.  Names are not
trusted alone: `check_sight` compares numbers with the model's own forward before the first image is trained on.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.layout import Layout
from unipo.policy.packing import Plan, make_plan

SERVED = (
    "unipo trains on images with models whose image features replace placeholder tokens of a causal text model with "
    "ordinary positions, such as LLaVA with a Llama, Qwen or Mistral inside"
)
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 0.1}
# What a processor may give beside token ids and pixels without meaning that the model needs it.
_SPARE = frozenset({"input_ids", "pixel_values", "attention_mask", "token_type_ids", "mm_token_type_ids"})


def objection(causal: Any) -> str:
    """Why this model's images cannot be trained on, by its structure; '' if they can."""
    config, body = causal.config, causal.base_model
    text = config.get_text_config()
    if getattr(config, "vision_config", None) is None or text is config:
        return "it is a text model"
    if not hasattr(body, "get_image_features") or not isinstance(getattr(body, "language_model", None), nn.Module):
        return "it has no vision tower beside a text model"
    if not isinstance(getattr(config, "image_token_id", None), int):
        return "its configuration names no placeholder token"
    if getattr(text, "cross_attention_layers", None):
        return "its text model looks at images by cross-attention"
    rotary = getattr(text, "rope_parameters", None) or {}
    if "mrope_section" in rotary:
        return "its positions have several dimensions (M-RoPE)"
    asked = inspect.signature(body.get_image_features).parameters.values()
    needed = [p.name for p in asked if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if needed != ["pixel_values"]:
        return f"its vision tower needs {', '.join(needed)}"
    return ""


def sees(causal: Any) -> bool:
    """Has the model the structure that images can be trained with?"""
    return not objection(causal)


def language_model(causal: Any) -> Any:
    """What runs over the packed row: the backbone, or the text model inside an image-and-text model."""
    return causal.base_model.language_model if sees(causal) else causal.base_model


def attention_by_part(causal: Any, name: str) -> Any:
    """What `set_attn_implementation` is given: the packed attention is the text model's alone."""
    return {"text_config": name} if sees(causal) else name


# -- the packed row --------------------------------------------------------------------------------
def embedded(causal: Any, plan: Plan, x: Tensor | None = None) -> Tensor | None:
    """[N, d] inputs of the packed row, placeholders replaced; None where the row holds no image.

    x: [N, d] embeddings of the token ids where they are known.  Raises DataError where a prompt has fewer placeholders
    than its images need; more are ordinary tokens, since a prompt may go on with tokens that were sampled.
    """
    if plan.images is None or not any(len(pile) for pile in plan.images):
        return None
    if x is None:
        x = causal.get_input_embeddings()(plan.ids)
    features = image_features(causal, plan.images)
    counts = torch.tensor([len(f) for f in features], device=plan.ids.device)
    place = placeholders(plan, int(causal.config.image_token_id), counts)
    return x.index_copy(0, place, torch.cat(features).to(x.dtype))


def placeholders(plan: Plan, token: int, counts: Tensor) -> Tensor:
    """Row numbers of the first `counts` [P] placeholders of each prompt, in order."""
    found = ((plan.ids == token) & (plan.segment_seq < 0)).nonzero().flatten()
    owner = plan.segment_prompt[found]
    there = torch.bincount(owner, minlength=len(counts))
    if bool((there < counts).any()):
        p = int((there < counts).nonzero()[0])
        raise DataError(
            f"prompt {p} of the batch has {int(there[p])} placeholder tokens, its images need {int(counts[p])}: "
            "encode prompts and images with the model's own processor"
        )
    rank = torch.arange(len(found), device=found.device) - (there.cumsum(0) - there)[owner]
    return found[rank < counts[owner]]


def image_features(causal: Any, images: Sequence[Tensor]) -> list[Tensor]:
    """The features [k, d] of each prompt's images, in order. images: [n, C, H, W] for each prompt, n may be 0.

    Images of one size go through the tower together.
    """
    body = causal.base_model
    like = next(body.parameters())
    flat = [(p, x) for p, pile in enumerate(images) for x in pile]
    made: dict[int, Tensor] = {}
    for shape in dict.fromkeys(x.shape for _, x in flat):
        chosen = [i for i, (_, x) in enumerate(flat) if x.shape == shape]
        pixels = torch.stack([flat[i][1] for i in chosen]).to(like.device, like.dtype)
        out = body.get_image_features(pixel_values=pixels)
        made.update(zip(chosen, getattr(out, "pooler_output", out), strict=True))
    text = causal.config.get_text_config()
    none = like.new_zeros(0, int(text.hidden_size))
    return [torch.cat([none, *(made[i] for i, (q, _) in enumerate(flat) if q == p)]) for p in range(len(images))]


def refuse_unseen(causal: Any, plan: Plan) -> None:
    """Raise DataError for placeholders in a row that came without the column of images."""
    if plan.images is not None or not sees(causal):
        return
    if bool(((plan.ids == int(causal.config.image_token_id)) & (plan.segment_seq < 0)).any()):
        raise DataError(
            "a prompt holds the placeholder of an image, but the batch has no images: this part of the method makes "
            "prompts of its own and knows text only"
        )


# -- freezing --------------------------------------------------------------------------------------
def freeze_vision(causal: Any, vision: str) -> None:
    """'train': nothing is frozen.  'projector': only what maps features to the text model is trained of the vision
    side.  'frozen': none of it.  The text model is trained in any case."""
    if vision not in ("train", "projector", "frozen"):
        raise ConfigError(f"policy.vision must be train, projector or frozen, got {vision!r}")
    if vision == "train" or not sees(causal):
        return
    body = causal.base_model
    for module in body.children():
        if module is not body.language_model and (vision == "frozen" or isinstance(module, PreTrainedModel)):
            module.requires_grad_(False)


# -- checking --------------------------------------------------------------------------------------
@torch.no_grad()
def check_sight(causal: Any, inputs: Mapping[str, Any], hidden: Any) -> None:
    """Compare the packed row with the model's own forward on one prompt.

    inputs: what the processor made of it, [1, ...] tensors.  hidden: plan -> [N, d].  Raises ConfigError where they
    differ: the model does more with images than put features in place.
    """
    kind = type(causal).__name__
    reason = objection(causal)
    strange = sorted(set(inputs) - _SPARE)
    if not reason and strange:
        reason = f"its processor also gives {', '.join(strange)}"
    if not reason and inputs["pixel_values"].dim() != 4:
        reason = f"its processor cuts images up (pixel values {tuple(inputs['pixel_values'].shape)})"
    if reason:
        raise ConfigError(f"{SERVED}; of {kind}, {reason}")
    ids, device = inputs["input_ids"][0].to(causal.device), causal.device
    none = ids[:0]
    layout = Layout.of([0], [1], [len(ids)]).to(device)
    batch = Batch.of(layout, context=ids, tokens=none, trainable=none.bool(), images=[inputs["pixel_values"]])
    got = hidden(make_plan(batch))
    given = {k: v.to(device) for k, v in inputs.items()}
    given["pixel_values"] = given["pixel_values"].to(next(causal.parameters()).dtype)
    names = causal.config.get_text_config()._attn_implementation
    causal.set_attn_implementation({"text_config": "eager"})
    try:
        expected = causal.base_model(**given, use_cache=False).last_hidden_state[0]
    finally:
        causal.set_attn_implementation({"text_config": names})
    difference = float((got - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE[expected.dtype]:
        raise ConfigError(
            f"{SERVED}; {kind} does more: its own forward differs by {difference:.1e} of the hidden states' size (attention "
            "in both directions between image tokens, positions of another kind, features in several layers)"
        )
