"""Errors that say what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UnipoError(Exception):
    """Base of every error unipo raises on purpose; the command prints it without a traceback."""


class ConfigError(UnipoError):
    """A setting, name or combination that cannot work; raised before anything slow starts."""


class DataError(UnipoError):
    """A row, prompt or dataset that cannot be used."""


class RewardError(UnipoError):
    """A reward that raised, hung, or returned something that is not one finite number per sample."""


class TrainingError(UnipoError):
    """A non-finite loss or gradient, or a run that cannot go on."""


class CheckpointError(UnipoError):
    """A checkpoint that is damaged, incomplete or from another configuration."""


class MissingExtra(ConfigError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'unipo[{extra}]'")


def unknown(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name nobody knows, with the nearest one that somebody does."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ConfigError(f"unknown {kind} {name!r}{hint} (known: {', '.join(names)})")
