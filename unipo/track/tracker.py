"""What a tracker is, and the ones there are. A tracker only shows; the run directory is the record.

A tracker imports its package when it is made, so that a missing one is an error before anything slow starts, and
begins when the first number comes, when it is known where a resumed run goes on.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from unipo.errors import ConfigError, MissingExtra, unknown


@dataclass(frozen=True)
class Beginning:
    """What a tracker is told first.

    run: directory of the run; its name is the run's.  config: every setting, with dotted names.  after: the step that
    a resumed run goes on from; what an earlier process showed of later steps is shown again, the same.
    """

    run: Path
    config: Mapping[str, Any]
    after: int = 0


class Tracker(Protocol):
    """Shows numbers somewhere. May raise at any time: `Trackers` counts it, and the run goes on."""

    def start(self, beginning: Beginning) -> None:
        """Called once, before the first number."""
        ...

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers of one step."""
        ...

    def text(self, name: str, body: str) -> None:
        """A text to be shown beside the run, such as its formula."""
        ...

    def summary(self, values: Mapping[str, float]) -> None:
        """What the whole run came to."""
        ...

    def close(self) -> None:
        """Called once, at the end, however the run ended."""
        ...


# Name -> (where its class is, the package it needs), or what makes one. The extra has the tracker's name.
TRACKERS: dict[str, tuple[str, str] | Callable[[], Tracker]] = {
    "tensorboard": ("unipo.track.tensorboard:TensorBoard", "tensorboard"),
    "wandb": ("unipo.track.wandb:WandB", "wandb"),
    "mlflow": ("unipo.track.mlflow:MLflow", "mlflow"),
    "trackio": ("unipo.track.trackio:Trackio", "trackio"),
}


def register_tracker(name: str, factory: Callable[[], Tracker]) -> None:
    """Add a tracker of your own under a name."""
    if name in TRACKERS:
        raise ConfigError(f"a tracker named {name!r} exists already")
    TRACKERS[name] = factory


def make_tracker(name: str) -> Tracker:
    """The tracker of this name. Raises ConfigError for an unknown one, MissingExtra if its package is missing."""
    if name not in TRACKERS:
        raise unknown("tracker", name, TRACKERS)
    entry = TRACKERS[name]
    if callable(entry):
        return entry()
    place, package = entry
    module, _, cls = place.partition(":")
    try:
        made: Tracker = getattr(importlib.import_module(module), cls)()
    except ImportError as error:
        raise MissingExtra(package, name, f"showing the run in {name} (--log.track {name})") from error
    return made


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
