"""How much arithmetic a position costs, and how fast this machine multiplies matrices."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import torch

from unipo.policy.architecture import head_weight
from unipo.policy.model import Policy
from unipo.policy.sight import language_model


def flops_per_position(policy: Policy) -> float:
    """Floating-point operations of forward and backward per packed position: 6 per weight of the layers.

    Embeddings are look-ups; the output layer counts once; attention scores are left out (small for short
    sequences) and so is the vision tower, so the utilisation reported is a lower bound.  Experts of a mixture count by their active share.
    """
    causal: Any = policy.causal
    body = language_model(causal)
    embedded = causal.get_input_embeddings().weight.numel()
    layers = sum(p.numel() for p in body.parameters()) - embedded
    config = causal.config.get_text_config()
    experts, active = getattr(config, "num_experts", 0), getattr(config, "num_experts_per_tok", 0)
    if experts and active:
        routed = sum(p.numel() for n, p in body.named_parameters() if ".experts." in n)
        layers -= round(routed * (1 - active / experts))
    total: float = 6.0 * (layers + head_weight(causal)[0].numel())
    return total


@lru_cache(maxsize=2)
def matmul_rate(compute: str, device: str = "cpu") -> float:
    """Measured floating-point operations per second of a square matrix product, median of five."""
    dtype = torch.bfloat16 if compute == "bfloat16" else torch.float32
    n = 4096 if device != "cpu" else 512
    a = torch.randn(n, n, dtype=dtype, device=device)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        (a @ a).sum().item()
        times.append(time.perf_counter() - start)
    rate: float = 2.0 * n**3 / sorted(times[1:])[2]
    return rate
