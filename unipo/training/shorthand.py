"""Short names of common settings, which options, configuration files, keywords and comparisons share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from unipo.errors import ConfigError
from unipo.training.config import TrainConfig, fitted, merged, nested

_SECTIONS = {name: kind for name, kind in get_type_hints(TrainConfig).items() if is_dataclass(kind)}

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

    A mapping or object under a short name is the section of that name: `data: {task: ...}`.
    """
    long: dict[str, Any] = {}
    short: dict[str, Any] = {}
    for key, given in values.items():
        name = str(key).replace("-", "_")
        value = _as_mapping(name, given) if is_dataclass(given) else given
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


def _as_mapping(name: str, section: Any) -> dict[str, Any]:
    """A section given as an object, as a mapping of what differs from its defaults, which other settings can join."""
    if name in _SECTIONS:
        fitted(_SECTIONS[name], section, name)  # complains of an object of another section
    plain = type(section)()
    changed = {f.name: v for f in fields(section) if (v := getattr(section, f.name)) != getattr(plain, f.name)}
    return {n: _as_mapping(f"{name}.{n}", v) if is_dataclass(v) else v for n, v in changed.items()}


def look(values: Any, path: str) -> Any:
    """The value at a dotted path of nested sections, None where there is none."""
    for name in path.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values
