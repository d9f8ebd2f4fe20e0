"""Weights back from a checkpoint into a live policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from unipo.errors import CheckpointError
from unipo.policy.loading import no_progress_bar
from unipo.policy.model import Policy
from unipo.policy.sight import sees


def load_weights(policy: Policy, folder: Path) -> None:
    """Copy what `Policy.save` wrote into the policy, exactly. Raises CheckpointError if it does not fit."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no *.safetensors")
    if sees(policy.causal) and not policy.adapted:
        _take_over(policy.causal, folder)
        return
    stored: dict[str, torch.Tensor] = {}
    for file in files:
        stored |= load_file(str(file), device=str(policy.device))
    if policy.adapted:
        from peft import set_peft_model_state_dict

        outcome: Any = set_peft_model_state_dict(policy.model, stored)
        unexpected = list(outcome.unexpected_keys)
        missing = [n for n, _ in policy.named_parameters() if n in set(outcome.missing_keys)]
    else:
        result: Any = policy.causal.load_state_dict(stored, strict=False)
        unexpected = list(result.unexpected_keys)
        tied = set(getattr(policy.causal, "all_tied_weights_keys", None) or ())
        missing = [n for n in result.missing_keys if n not in tied and "rotary" not in n]
    _refuse(folder, missing, unexpected)


def _take_over(causal: Any, folder: Path) -> None:
    """Weights of an image-and-text model, which `transformers` stores under other names than they have in memory."""
    load: Any = type(causal).from_pretrained
    with no_progress_bar():
        model, told = load(folder, dtype=next(causal.parameters()).dtype, output_loading_info=True)
    _refuse(folder, sorted(told["missing_keys"]), sorted(told["unexpected_keys"]))
    causal.load_state_dict(model.state_dict())


def _refuse(folder: Path, missing: list[str], unexpected: list[str]) -> None:
    if unexpected or missing:
        raise CheckpointError(
            f"{folder} does not fit this model: missing {missing[:3] or 'nothing'}, unexpected {unexpected[:3] or 'nothing'}"
        )
