"""The library's front door: what the command does, from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unipo.training.config import TrainConfig, from_dict, nested
from unipo.training.run import Result
from unipo.training.run import train as run_training


def train(
    model: str = "",
    data: str | Path = "",
    reward: Callable[..., Any] | str | Mapping[str, float] | object | None = None,
    method: str = "grpo",
    *,
    task: Any = None,
    **settings: Any,
) -> Result:
    """Post-train a model and return what it came to.

    model: directory or Hugging Face id (empty: the starter model; settings that suit it are in
    `unipo.training.defaults.STARTER_DEFAULTS`, which only the command applies by itself).  data: file, dataset directory
    or hub id; task: a task's name or object instead.  reward: a Python function, a name such as "maths", or a
    weighted sum.  method: a name from the catalogue.  settings: any key of `TrainConfig`, nested as mappings or with
    dots, e.g. steps=50, optim={"learning_rate": 1e-5}, or **{"sampling.max_tokens": 256}.
    """
    values = nested(settings)
    values["method"] = method
    if model:
        values.setdefault("policy", {})["model"] = str(model)
    section = values.setdefault("data", {})
    if data:
        section["data"] = str(data)
    if isinstance(task, str):
        section["task"] = task
        task = None
    if isinstance(reward, str):  # stands in the run's configuration, so that it can be resumed
        section["reward"], reward = reward, None
    if values.get("resume"):
        values.setdefault("steps", 0)  # as many as the run was started for
    config: TrainConfig = from_dict(TrainConfig, values)
    return run_training(config, reward=reward, task=task)
