"""Models from directories and the hub, and adapters on them."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from transformers import logging as hf_logging

from unipo.errors import ConfigError, MissingExtra
from unipo.policy.sight import SERVED, objection
from unipo.policy.spec import LoraSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def load_model(path: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A causal language model from a directory or hub id. Remote code is never run."""
    folder = Path(path)
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ConfigError(f"{path} holds no weights (*.safetensors); it contains: {_listing(folder)}")
    if not folder.exists() and path.count("/") != 1:
        raise ConfigError(f"model {path!r} is neither a directory nor a Hugging Face id (organisation/name)")
    try:
        with no_progress_bar():
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            kind: Any = AutoModelForCausalLM if not with_vision(config) else AutoModelForImageTextToText
            load: Any = kind.from_pretrained
            model: Any = load(path, config=config, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load a causal language model from {path!r}: {error}") from error
    return model.to(device)  # type: ignore[no-any-return]


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """Have `transformers` draw none."""
    before = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            hf_logging.enable_progress_bar()


def with_vision(config: Any) -> bool:
    """Does this configuration describe a model of images and text?"""
    return (
        getattr(config, "vision_config", None) is not None
        and type(config) in AutoModelForImageTextToText._model_mapping
    )


def can_read_images() -> bool:
    """Whether the package that opens images is installed."""
    return importlib.util.find_spec("PIL") is not None


def load_processor(path: str, causal: Any) -> Any:
    """The processor of images and text that came with a model."""
    reason = objection(causal)
    if reason:
        raise ConfigError(
            f"the prompts have images; {SERVED} (--model shapes is one); of {type(causal).__name__}, {reason}"
        )
    if not can_read_images():
        raise MissingExtra("pillow", "vision", "training on images")
    try:
        processor: Any = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ConfigError(f"cannot load a processor of images from {path!r}: {error}") from error
    if not hasattr(processor, "image_processor") or not getattr(processor, "image_token", None):
        raise ConfigError(
            f"{path!r} has no processor of images (preprocessor_config.json), only {type(processor).__name__}"
        )
    return processor


def _listing(folder: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"


def add_lora(model: nn.Module, lora: LoraSpec) -> nn.Module:
    """Wrap in peft's LoRA; only the adapters are trained."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtra("peft", "lora", "training adapters") from error
    targets: Any = lora.targets
    if targets != "all-linear":
        targets = [name.strip() for name in targets.split(",")]
        modules = [name for name, _ in model.named_modules()]
        lost = [t for t in targets if not any(m == t or m.endswith(f".{t}") for m in modules)]
        if lost:
            linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
            raise ConfigError(
                f"policy.lora.targets: {', '.join(lost)} names no module of the model; there are {', '.join(linear)}"
            )
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)  # type: ignore[arg-type,no-any-return]
