"""AdamW, its schedule, and the guard in front of every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from unipo.errors import ConfigError, TrainingError
from unipo.training.config import OptimConfig

_FALLBACK = {"learning_rate": 1e-6, "weight_decay": 0.0, "warmup_steps": 0, "max_grad_norm": 1.0, "skip_grad_norm": 0.0}


def resolve_optim(config: OptimConfig, recommended: Mapping[str, Any]) -> OptimConfig:
    """Fill what the user left open: the method's recommendation, else the library's default."""
    filled = {
        name: recommended.get(name, default) for name, default in _FALLBACK.items() if getattr(config, name) is None
    }
    resolved = replace(config, **filled)
    if resolved.learning_rate is None or resolved.learning_rate <= 0:
        raise ConfigError(f"the learning rate must be positive, got {resolved.learning_rate}")
    return resolved


def rate_factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """Factor on the learning rate at optimiser step `step` (from 0) of `total`."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return 1.0 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


@dataclass
class Optimiser:
    """AdamW over the trained parameters; weight decay on matrices only."""

    config: OptimConfig
    named: Sequence[tuple[str, nn.Parameter]]
    total: int
    taken: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        c = self.config
        matrices = [p for _, p in self.named if p.dim() >= 2]
        vectors = [p for _, p in self.named if p.dim() < 2]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": c.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        rate = c.learning_rate or 0.0
        self.adam = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=rate, betas=(c.beta1, c.beta2), eps=c.eps, fused=True
        )

    @property
    def rate(self) -> float:
        """Learning rate of the coming step."""
        factor = rate_factor(self.taken, self.total, self.config.warmup_steps or 0, self.config.schedule)
        return (self.config.learning_rate or 0.0) * factor

    def zero(self) -> None:
        """Forget the gradients."""
        self.adam.zero_grad(set_to_none=True)

    def step(self) -> float:
        """Clip and step. Returns the gradient norm before clipping; a non-finite one is an error, not a step.

        A norm above `skip_grad_norm` changes nothing but the place in the schedule, and is counted in `refused`.
        """
        parameters = [p for _, p in self.named]
        norm = gradient_norm(parameters)
        value = float(norm)
        if not math.isfinite(value):
            raise TrainingError(
                f"the gradient norm is {value} at optimiser step {self.taken + 1}: {_culprits(self.named)}. Nothing was "
                "changed; lower the learning rate or look at the completions and rewards of this step"
            )
        if self.config.skip_grad_norm and value > self.config.skip_grad_norm:
            self.taken += 1
            self.refused += 1
            return value
        limit = self.config.max_grad_norm or 0.0
        if limit and value > limit:
            grads = [p.grad for p in parameters if p.grad is not None]
            torch._foreach_mul_(grads, limit / (value + 1e-6))
        for group in self.adam.param_groups:
            group["lr"] = self.rate
        self.adam.step()
        self.taken += 1
        return value

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"adam": self.adam.state_dict(), "taken": self.taken}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        self.adam.load_state_dict(state["adam"])
        self.taken = int(state["taken"])


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """L2 norm over all gradients, in float32 or wider."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(())
    wide = torch.promote_types(grads[0].dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, dtype=wide)))
    return norm


def _culprits(named: Sequence[tuple[str, nn.Parameter]]) -> str:
    bad = [n for n, p in named if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    shown = ", ".join(bad[:3])
    return f"non-finite gradients in {len(bad)} tensors ({shown}{', ...' if len(bad) > 3 else ''})"
