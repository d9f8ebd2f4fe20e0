"""The starter: a causal language model of 0.8 million weights, shipped with unipo, that needs post-training.

It was made by `python -m unipo.starter.make` from generated demonstrations (`unipo.tasks.scratchpad`), a
stated share of which contain a slip.  So it knows how to work every kind of problem and, sampled at
temperature 1, goes wrong about as often as its teachers did: work for reinforcement learning that shows on
two CPU cores within a minute.  Load it like any other model:
`AutoModelForCausalLM.from_pretrained(starter_path())`.  What it scores stands in `model/README.md`.
"""

from __future__ import annotations

from pathlib import Path

from unipo.errors import ConfigError

__all__ = ["starter_path"]


def starter_path() -> Path:
    """The folder of the shipped model, tokenizer included. Raises ConfigError if the installation lacks it."""
    path = Path(__file__).resolve().parent / "model"
    if not (path / "model.safetensors").is_file():
        raise ConfigError(f"the starter model is not in {path}: reinstall unipo, or run python -m unipo.starter.make")
    return path
