"""How a policy is loaded and computed, as plain settings: importing this loads no model code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from unipo.errors import ConfigError

Weights = Literal["float32", "bfloat16", "float64"]
Compute = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class LoraSpec:
    """Low-rank adapters (peft). rank 0 trains all weights. targets: module names, or 'all-linear'."""

    rank: int = 0
    alpha: int = 32
    targets: str = "all-linear"


@dataclass(frozen=True)
class PolicySpec:
    """How the policy is loaded and computed.

    model: a directory, or a Hugging Face id (downloaded by transformers if it is not in its cache).
    compute: 'float32', or 'bfloat16' for autocast with float32 weights.  reference: 'frozen' copy of the start,
    'adapter-off' (LoRA only), 'ema' of the policy, or a model path.  checkpointing: recompute activations in the
    backward.  micro_tokens: packed positions per forward and backward; 0 is no limit.  tape_mb: megabytes in which the
    local engine may keep what it computes while sampling, so that the update need not forward it again (from hidden size 256 up); 0: none.
    vision: how much of the vision side of an image-and-text model is trained: all, its projector, or nothing.
    """

    model: str = ""
    weights: Weights = "float32"
    compute: Compute = "float32"
    lora: LoraSpec = LoraSpec()
    reference: str = "auto"
    reference_decay: float = 0.99
    checkpointing: bool = False
    micro_tokens: int = 0
    tape_mb: int = 2048
    vision: Literal["train", "projector", "frozen"] = "train"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, kind in (("weights", Weights), ("compute", Compute)):
            value, known = getattr(self, name), get_args(kind)
            if value not in known:
                raise ConfigError(f"{name} {value!r} is not one of {', '.join(known)}")
