"""Tiny random models of images and text, batches with images, and the plain computation they are compared with."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from tests.policy.models import SMALL, VOCAB
from unipo.batch import NO_IMAGES, Batch
from unipo.layout import Layout

IMAGE = 5  # id of the placeholder
PIXELS, PATCHES = 16, 4

_EYE: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": PIXELS,
    "patch_size": 8,
}  # fmt: skip
TOWERS: dict[str, tuple[Any, str]] = {
    "clip": (hf.CLIPVisionConfig(**_EYE), "default"),
    "siglip": (hf.SiglipVisionConfig(**_EYE), "full"),
}
TEXTS: dict[str, Any] = {
    "llama": hf.LlamaConfig(**SMALL),
    "qwen3": hf.Qwen3Config(**SMALL, tie_word_embeddings=True),
    "gemma": hf.GemmaConfig(**SMALL),
}


def make(text: str = "llama", tower: str = "clip", seed: int = 0, layer: int | list[int] = -2) -> Any:
    """A fresh float32 LLaVA with every vector weight and bias away from its trivial start."""
    torch.manual_seed(seed)
    eye, strategy = TOWERS[tower]
    config = hf.LlavaConfig(
        vision_config=copy.deepcopy(eye),
        text_config=copy.deepcopy(TEXTS[text]),
        image_token_index=IMAGE,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
    )
    model = hf.LlavaForConditionalGeneration(config).float()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def words(count: int, g: torch.Generator) -> list[int]:
    return (torch.randint(VOCAB - IMAGE - 1, (count,), generator=g) + IMAGE + 1).tolist()


def ragged(seed: int = 0) -> Batch:
    """Three prompts with one, no and two images; 2, 3 and 2 responses of 0 to 7 tokens. A response holds the id of the
    placeholder: there it is a token like any other."""
    g = torch.Generator().manual_seed(seed)
    hole = [IMAGE] * PATCHES
    contexts = [
        [*words(2, g), *hole, *words(3, g)],
        words(6, g),
        [*hole, *words(1, g), *hole, *words(2, g)],
    ]
    layout = Layout.of([3, 5, 0, 7, 1, 4, 4], [2, 3, 2], [len(c) for c in contexts])
    tokens = torch.randint(VOCAB, (layout.n_tokens,), generator=g)
    tokens[3] = IMAGE
    return Batch.of(
        layout,
        context=torch.tensor([t for c in contexts for t in c]),
        tokens=tokens,
        trainable=torch.ones(layout.n_tokens, dtype=torch.bool),
        images=[
            torch.randn(1, 3, PIXELS, PIXELS, generator=g),
            NO_IMAGES,
            torch.randn(2, 3, PIXELS, PIXELS, generator=g),
        ],
    )


def plain_logits(model: Any, ids: Tensor, images: Tensor, prompt: int) -> Tensor:
    """[L, V] logits of one sequence through transformers' own forward. prompt: how many of the ids are the prompt."""
    x = model.get_input_embeddings()(ids[None])
    like = x.dtype
    if not len(images):
        return model(inputs_embeds=x).logits[0]  # type: ignore[no-any-return]
    if not bool((ids[prompt:] == IMAGE).any()):
        return model(input_ids=ids[None], pixel_values=images.to(like)).logits[0]  # type: ignore[no-any-return]
    # transformers counts placeholders in responses too: its own parts, put together by hand.
    features = torch.cat(list(model.model.get_image_features(pixel_values=images.to(like)).pooler_output))
    place = (ids[:prompt] == IMAGE).nonzero().flatten()
    x = x[0].index_copy(0, place, features)[None]
    return model.lm_head(model.model.language_model(inputs_embeds=x).last_hidden_state)[0]  # type: ignore[no-any-return]


def plain_logp(model: Any, batch: Batch) -> Tensor:
    """[T] log-probs with every sequence forwarded alone."""
    layout = batch.layout
    contexts = batch.context.split(layout.context_lengths.tolist())
    out = []
    for s, response in enumerate(batch.tokens.split(layout.seq_lengths.tolist())):
        if len(response):
            p = int(layout.seq_prompt[s])
            ids = torch.cat([contexts[p], response])
            logits = plain_logits(model, ids, batch.images[p], len(contexts[p]))[len(contexts[p]) - 1 : -1]
            out.append(torch.log_softmax(logits, -1).gather(1, response[:, None]).squeeze(1))
    return torch.cat(out)
