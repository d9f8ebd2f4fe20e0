"""The library's front door: what the command does, from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unipo.training.config import DataConfig, TrainConfig, from_dict
from unipo.training.resume import going_on
from unipo.training.run import Result
from unipo.training.run import train as run_training
from unipo.training.shorthand import expand


def train(
    model: str = "",
    data: str | Path | Mapping[str, Any] | DataConfig = "",
    reward: Callable[..., Any] | str | Mapping[str, float] | object | None = None,
    method: str = "",
    *,
    task: Any = None,
    **settings: Any,
) -> Result:
    """Post-train a model and return what it came to.

    model: directory or Hugging Face id (empty: the starter model; settings that suit it are in
    `unipo.training.defaults.STARTER_DEFAULTS`, which only the command applies by itself).  data: file, dataset directory
    or hub id, or the section `data` as a mapping or object; task: a task's name or object instead.  reward: a Python
    function, a name such as "maths", or a weighted sum.  method: a name from the catalogue, grpo if none is given.
    settings: any key of `TrainConfig`, nested as mappings, with dots or under a short name, e.g. steps=50, lr=1e-5,
    optim={"schedule": "cosine"}, or **{"eval.prompts": 64}.  With resume=True and run=DIRECTORY the settings are those
    the run was started with; of them only steps and log may be given anew, anything else that differs is an error.
    """
    named = dict(settings)
    if method:
        named["method"] = method
    if model:
        named["model"] = str(model)
    if data:
        named["data"] = str(data) if isinstance(data, Path) else data
    if isinstance(task, str):
        named["task"] = task
        task = None
    if isinstance(reward, str):  # stands in the run's configuration, so that it can be resumed
        named["reward"], reward = reward, None
    values = expand(named, "unipo.train")
    if values.get("resume"):
        values = going_on(values)
    config: TrainConfig = from_dict(TrainConfig, values)
    return run_training(config, reward=reward, task=task)
