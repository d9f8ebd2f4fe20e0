"""What a run that goes on keeps from the run that was begun, and what it may be told anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from unipo.errors import ConfigError
from unipo.training.config import TrainConfig, from_dict, merged, read_mapping, to_dict
from unipo.training.rundir import newest_run
from unipo.training.shorthand import look

# What a resumed run may be told anew.
OPEN = ("steps", "run", "resume", "log")


def begun(run: str) -> dict[str, Any]:
    """The settings that the run to be resumed was started with. Raises ConfigError where there is none."""
    if not run:
        newest = newest_run()
        hint = f"; the newest is {newest}" if newest else ""
        raise ConfigError(f"--resume needs --run with the directory of the run{hint}")
    if not (Path(run) / "config.yaml").is_file():
        raise ConfigError(f"nothing to resume in {run}: it has no config.yaml")
    return merged(read_mapping(Path(run) / "config.yaml"), {"run": run, "resume": True})


def refuse_changes(config: TrainConfig) -> None:
    """Raises ConfigError where a run to be resumed would go on with other settings, or with fewer steps."""
    from unipo.training.setup import resolved  # loads model code, which `unipo train --help` need not wait for

    before: TrainConfig = from_dict(TrainConfig, begun(config.run))
    _, config = resolved(config)
    config = from_dict(TrainConfig, to_dict(config))  # as the run wrote it down, where tuples are lists
    changes: dict[str, Any] = {}
    for name in (f.name for f in fields(config) if f.name not in OPEN):
        collect_changes(getattr(config, name), getattr(before, name), name, changes)
    if changes:
        asked = ", ".join(
            f"{path} = {value!r} (was {look(to_dict(before), path)!r})" for path, value in changes.items()
        )
        raise ConfigError(f"a resumed run keeps its configuration; leave out {asked}, or start a new run")
    if config.steps < before.steps:
        raise ConfigError(f"the run was started for {before.steps} steps; --steps {config.steps} would cut it short")


def collect_changes(value: Any, base: Any, path: str, out: dict[str, Any]) -> None:
    """Put into `out`, under its dotted path, each setting of `value` that differs from `base`; mappings stay whole."""
    if is_dataclass(value):
        for f in fields(value):
            collect_changes(getattr(value, f.name), getattr(base, f.name), f"{path}.{f.name}", out)
    elif value != base:
        out[path] = value


def going_on(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the run begun with what is asked laid over them; `refuse_changes` says what may differ."""
    return merged(begun(str(asked.get("run") or "")), asked)
