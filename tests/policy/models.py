"""Tiny random models of several architectures, and the plain computation they are compared with."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from unipo.batch import Batch
from unipo.layout import Layout

VOCAB = 97
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "head_dim": 8, "max_position_embeddings": 128,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "qwen3": hf.Qwen3Config(**SMALL),
    "qwen2": hf.Qwen2Config(**{k: v for k, v in SMALL.items() if k != "head_dim"}),
    "llama": hf.LlamaConfig(**SMALL),
    "mistral-window": hf.MistralConfig(**SMALL, sliding_window=6),
    "gemma": hf.GemmaConfig(**SMALL),
    "gemma2": hf.Gemma2Config(**SMALL, sliding_window=6),
    "gemma3": hf.Gemma3TextConfig(**SMALL, sliding_window=6),
    "gpt2": hf.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=1),
    "granite": hf.GraniteConfig(**{k: v for k, v in SMALL.items() if k != "head_dim"}, logits_scaling=4.0),
    "cohere": hf.CohereConfig(**{k: v for k, v in SMALL.items() if k != "head_dim"}, logit_scale=0.25),
    "mixture": hf.Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24),
}  # fmt: skip


def make(name: str, seed: int = 0) -> Any:
    """A fresh float32 model with every vector weight and bias away from its trivial start."""
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name])).float()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def ragged(seed: int = 0) -> Batch:
    """Three prompts with 2, 3 and 2 responses of 0 to 7 tokens."""
    g = torch.Generator().manual_seed(seed)
    layout = Layout.of([3, 5, 0, 7, 1, 4, 4], [2, 3, 2], [4, 6, 3])
    return Batch.of(
        layout,
        context=torch.randint(VOCAB, (layout.n_context,), generator=g),
        tokens=torch.randint(VOCAB, (layout.n_tokens,), generator=g),
        trainable=torch.ones(layout.n_tokens, dtype=torch.bool),
    )


def plain_logp(model: nn.Module, batch: Batch) -> Tensor:
    """[T] log-probs with every sequence forwarded alone, through transformers' own forward."""
    layout = batch.layout
    contexts, responses = (
        batch.context.split(layout.context_lengths.tolist()),
        batch.tokens.split(layout.seq_lengths.tolist()),
    )
    out = []
    for s, response in enumerate(responses):
        if len(response):
            context = contexts[int(layout.seq_prompt[s])]
            logits = model(torch.cat([context, response])[None]).logits[0, len(context) - 1 : -1]
            out.append(torch.log_softmax(logits, -1).gather(1, response[:, None]).squeeze(1))
    return torch.cat(out)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
