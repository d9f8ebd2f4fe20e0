"""Models from directories and the hub, and adapters on them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers import logging as hf_logging

from unipo.errors import ConfigError, MissingExtra
from unipo.policy.sight import SERVED, objection
from unipo.policy.spec import LoraSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def load_model(path: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A causal language model from a directory or hub id. Remote code is never run.

    A directory of adapters, as a run with `policy.lora` saves them, gives the model they were trained on with the
    adapters added to its weights.
    """
    folder = Path(path)
    base = adapter_base(path)
    if base is not None:
        return _with_adapters(path, base, dtype, device)
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


def adapter_base(path: str) -> str | None:
    """The model that a directory's adapters were trained on; None where the directory holds a whole model, or is none."""
    file = Path(path) / "adapter_config.json"
    if not file.is_file() or (Path(path) / "config.json").is_file():
        return None
    base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ConfigError(f"{file} does not say which model its adapters were trained on (base_model_name_or_path)")
    return str(base)


def _with_adapters(path: str, base: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    require_peft("loading adapters")
    from peft import PeftModel

    try:
        model = load_model(base, dtype, device)
    except ConfigError as error:
        raise ConfigError(f"{path} holds adapters of {base}, which is needed too: {error}") from error
    merged: Any = PeftModel.from_pretrained(model, path, torch_device=device).merge_and_unload()
    return merged.requires_grad_(True)  # type: ignore[no-any-return]  # peft has frozen what its adapters lay on


def refuse_stacked(below: str, whole: str) -> None:
    """Raise ConfigError where the model `below` adapters is adapters itself. whole: what has to be merged first.

    peft calls each of them "default", so that plain peft would load one in place of both, without a word.
    """
    if adapter_base(below) is None:
        return
    merge = f"load_policy(PolicySpec(model={whole!r})).save(Path('merged'))"
    code = f"from pathlib import Path; from unipo.policy.model import load_policy, PolicySpec; {merge}"
    raise ConfigError(
        f"{below} holds adapters, and adapters on adapters would be another model in plain peft. Make one whole model "
        f'of {whole} first, and go on with that: python -c "{code}"'
    )


def require_peft(what: str) -> None:
    """Raise MissingExtra, with what needs it, unless peft is installed."""
    if importlib.util.find_spec("peft") is None:
        raise MissingExtra("peft", "lora", what)


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
    require_peft("training adapters")
    from peft import LoraConfig, get_peft_model

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


def usable_device(asked: str) -> str:
    """A device by name; "auto" is the accelerator if there is one. Processes of one machine take one each."""
    device = asked if asked != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
        torch.cuda.set_device(device)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def check_vocabulary(path: str, tokenizer: Any, setting: str) -> None:
    """Raise ConfigError unless another model's tokens mean what those of `tokenizer` do (None: nothing to compare)."""
    if tokenizer is None:
        return
    try:
        other = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{setting}: cannot load a tokenizer from {path!r}: {error}") from error
    if other.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"{setting}: the tokenizer of {path!r} is not the policy's, so its token ids would mean other text"
        )
