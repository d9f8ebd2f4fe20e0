"""Short names of common settings, which options, configuration files, keywords and comparisons share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unipo.errors import ConfigError
from unipo.training.config import merged, nested

# Short name -> key of `TrainConfig`.
SHORT: dict[str, str] = {
    "model": "policy.model",
    "data": "data.data",
    "task": "data.task",
    "reward": "data.reward",
    "max_tokens": "sampling.max_tokens",
    "lr": "optim.learning_rate",
    "lora_rank": "policy.lora.rank",
    "track": "log.track",
}


def expand(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Short and dotted names as nested sections. Raises ConfigError where one setting is given twice and differs.

    A mapping under a short name is the section of that name: `data: {task: ...}`.
    """
    long: dict[str, Any] = {}
    short: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name in SHORT and not isinstance(value, Mapping):
            short[SHORT[name]] = value
        else:
            long[name] = value
    out = nested(long)
    for path, value in short.items():
        other = look(out, path)
        if other is not None and other != value:
            raise ConfigError(f"{where or 'options'}: {path} is given twice, as {value!r} and as {other!r}")
    return merged(out, nested(short))


def look(values: Any, path: str) -> Any:
    """The value at a dotted path of nested sections, None where there is none."""
    for name in path.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values
