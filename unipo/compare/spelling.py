"""How arms, budgets and common settings are written on a command line and in files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from unipo.compare.plan import UNITS, Arm, Budget
from unipo.errors import ConfigError
from unipo.training.config import TrainConfig, from_dict, nested, to_dict
from unipo.training.shorthand import SHORT

# Short names of settings that an arm may have of its own.
OWN = {name: key for name, key in SHORT.items() if key.startswith("optim.")}
# Keys of `TrainConfig` that a comparison decides.
DECIDED = ("method", "set", "steps", "seed", "prompts", "budget", "run", "resume")
# Those within a section, and what is to be said instead.
DECIDED_WITHIN = {
    ("data", "task"): "name it as a task of the comparison (--task, tasks: in a file, task= of a reproduction)",
    ("eval", "points"): "say how many with points (--points)",
    ("eval", "before"): "every run is evaluated before its first step",
    ("eval", "after"): "every run is evaluated after its last step",
}


def parse_arm(text: str) -> Arm:
    """An arm from its spelling: dapo, or dapo[objective.high=0.3,average=TokenMean(),lr=1e-4].

    Settings are those of `unipo train --set`; lr and optim.* belong to the optimiser.  Values are read as YAML, or
    as parts.
    """
    name, bracket, rest = text.strip().partition("[")
    if not name or (bracket and not rest.endswith("]")):
        raise ConfigError(f"an arm is written METHOD or METHOD[PATH=VALUE,...], got {text!r}")
    own: dict[str, Any] = {}
    optim: dict[str, Any] = {}
    for item in _split(rest[:-1]) if bracket else []:
        path, equals, value = item.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"settings of an arm are written PATH=VALUE, got {item!r} in {text!r}")
        path = OWN.get(path.strip(), path.strip())
        head, _, below = path.partition(".")
        (optim if head == "optim" else own)[below if head == "optim" else path] = read_value(value.strip())
    return Arm(text.strip(), name, own, optim)


def _split(text: str) -> list[str]:
    """At commas outside of any bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [p for p in parts if p.strip()]


def read_value(text: str) -> Any:
    """A value as YAML reads it, and numbers like 1e-4, which YAML takes for text; parts stay text."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def parse_budget(given: Any) -> Budget:
    """A budget from two words in either order, as one text or a list: "100000 tokens", [tokens, 100000]."""
    parts = given.split() if isinstance(given, str) else given if isinstance(given, list | tuple) else [given]
    words = [str(part) for part in parts]
    units = [w for w in words if w in UNITS]
    numbers = [w for w in words if w not in UNITS]
    try:
        (unit,), (amount,) = units, numbers
        return Budget(unit, float(amount.replace("_", "")))  # type: ignore[arg-type]
    except ValueError:
        raise ConfigError(
            f"a budget is written e.g. 100000 tokens, 60 steps or 30 seconds; got {' '.join(words)!r}"
        ) from None


def plain_train(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys of `TrainConfig` as sections, checked."""
    out = nested(values)
    kept = to_dict(from_dict(TrainConfig, out))
    for name in DECIDED:
        if name in out:
            raise ConfigError(f"{name} is decided by the comparison itself and cannot be set for its runs")
    for (section, name), instead in DECIDED_WITHIN.items():
        if name in out.get(section, {}):
            raise ConfigError(
                f"{section}.{name} is decided by the comparison itself and cannot be set for its runs: {instead}"
            )
    return {k: _only(v, kept[k]) for k, v in out.items()}


def _only(asked: Any, fitted: Any) -> Any:
    """The fitted values of what was asked for, no defaults beside them."""
    if isinstance(asked, Mapping) and isinstance(fitted, Mapping):
        return {k: _only(v, fitted[str(k).replace("-", "_")]) for k, v in asked.items()}
    return fitted
