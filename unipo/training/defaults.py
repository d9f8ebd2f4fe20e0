"""What the command trains the shipped model with, when it is not told otherwise. Imports no model code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What the starter model learns the scratchpad task with, used below every setting of the user when neither another
# model nor another task is named. Keys of `TrainConfig`.
STARTER_DEFAULTS: dict[str, Any] = {
    "method": "cepo",
    "steps": 60,
    "prompts": 8,
    "sampling": {"max_tokens": 48},
    "optim": {"learning_rate": 2e-4, "beta2": 0.95, "warmup_steps": 5},
    "eval": {"prompts": 512},
}
STARTER = "starter"
SHAPES = "shapes"  # the shipped model of images and text, and its task
SCRATCHPAD = "scratchpad"  # the starter's task


def trained_on(model: str, task: str = "", data: str = "") -> str:
    """The data or task of these settings; where neither is named, what the shipped model was made for."""
    return data or task or (SHAPES if model == SHAPES else SCRATCHPAD)


def starter_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """`STARTER_DEFAULTS` where the nested settings name no other model, task or data; else nothing."""
    policy, data = values.get("policy") or {}, values.get("data") or {}
    if not isinstance(policy, Mapping) or not isinstance(data, Mapping):
        return {}  # a section that is no mapping is reported where the configuration is made
    task = str(data.get("task") or SCRATCHPAD).partition("?")[0]
    own = policy.get("model", "") in ("", STARTER) and not data.get("data") and task == SCRATCHPAD
    return dict(STARTER_DEFAULTS) if own else {}
