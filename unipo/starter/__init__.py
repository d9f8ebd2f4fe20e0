"""Two models that are shipped: the starter, and one that also sees.

The starter is a causal language model of 0.8 million weights that needs post-training.  It was made by `python -m unipo.starter.make` from generated demonstrations (`unipo.tasks.scratchpad`), a
stated share of which contain a slip.  So it knows how to work every kind of problem and, sampled at
temperature 1, goes wrong about as often as its teachers did: work for reinforcement learning that shows on
two CPU cores within a minute.  Load it like any other model:
`AutoModelForCausalLM.from_pretrained(starter_path())`.  What it scores stands in `model/README.md`.
The other answers questions about drawn shapes; see `unipo.starter.shapes`, which makes it.
"""

from __future__ import annotations

from pathlib import Path

from unipo.errors import ConfigError

__all__ = ["shapes_path", "starter_path"]


def starter_path() -> Path:
    """The folder of the shipped model, tokenizer included. Raises ConfigError if the installation lacks it."""
    return _shipped("model", "python -m unipo.starter.make")


def shapes_path() -> Path:
    """The folder of the model of images and text, processor included. Raises ConfigError if the installation lacks it."""
    return _shipped("shapes_model", "python -m unipo.starter.shapes")


def _shipped(folder: str, made_by: str) -> Path:
    path = Path(__file__).resolve().parent / folder
    if not (path / "model.safetensors").is_file():
        raise ConfigError(f"the shipped model is not in {path}: reinstall unipo, or run {made_by}")
    return path
