"""The run directory: everything a run leaves behind, in plain formats.

config.yaml        the resolved configuration      method.txt    the formula that was run
metrics.jsonl      one line per step               completions.jsonl   sampled responses
events.jsonl       what happened, by name          checkpoints/  see `unipo.training.checkpoint`
tensorboard/       event files                     result.json   the closing summary
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import yaml

from unipo.errors import ConfigError, MissingExtra, TrainingError


def new_run_path(method: str, root: Path = Path("runs")) -> Path:
    """runs/METHOD-DATE-TIME, with a number added if it is taken."""
    base = root / f"{method}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, n = base, 2
    while path.exists():
        path, n = base.with_name(f"{base.name}-{n}"), n + 1
    return path


class RunDir:
    """Opens or creates a run directory and appends to it. Only the first rank writes (`active`)."""

    def __init__(self, path: Path, resume: bool, active: bool = True, tensorboard: bool = False) -> None:
        self.path, self.active = path, active
        self._files: dict[str, TextIO] = {}
        self._board: Any = None
        if not active:
            return
        if not resume and (path / "metrics.jsonl").exists():
            raise ConfigError(f"{path} already holds a run; pass --resume to go on with it, or another --run")
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            probe = path / ".write-test"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"cannot write the run directory {path}: {error.strerror}; choose another with --run"
            ) from error
        if tensorboard:
            self._board = _summary_writer(path / "tensorboard")

    def write_config(self, config: Mapping[str, Any], formula: str) -> None:
        if self.active:
            (self.path / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
            (self.path / "method.txt").write_text(formula + "\n")

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """One JSON line; a full disk is an error that says so."""
        if not self.active:
            return
        try:
            if name not in self._files:
                self._files[name] = (self.path / f"{name}.jsonl").open("a")
            self._files[name].write(json.dumps(record, ensure_ascii=False) + "\n")
            self._files[name].flush()
        except OSError as error:
            raise TrainingError(
                f"cannot write {name}.jsonl in {self.path}: {error.strerror}. Free some space and go on with --resume"
            ) from error

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.append("metrics", {"step": step, **values})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def event(self, step: int, name: str, **details: Any) -> None:
        self.append("events", {"step": step, "event": name, **details})

    def cut_after(self, step: int) -> None:
        """Drop what was logged after a checkpoint that is being resumed from: it will be done again, identically."""
        if not self.active:
            return
        for name in ("metrics", "completions", "events", "evaluations"):
            file = self.path / f"{name}.jsonl"
            if file.exists():
                kept = [line for line in file.read_text().splitlines() if _step_of(line) <= step]
                temporary = file.with_suffix(".tmp")
                temporary.write_text("".join(f"{line}\n" for line in kept))
                os.replace(temporary, file)

    def result(self, values: Mapping[str, Any]) -> None:
        if self.active:
            (self.path / "result.json").write_text(json.dumps(values, indent=1) + "\n")

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._board is not None:
            self._board.close()
            self._board = None


def _step_of(line: str) -> float:
    """Step of a log line; a line cut short by a kill belongs to no kept step."""
    try:
        return float(json.loads(line).get("step", float("inf")))
    except json.JSONDecodeError:
        return float("inf")


def _summary_writer(path: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra("tensorboard", "tensorboard", "writing TensorBoard files (--log.tensorboard)") from error
    return SummaryWriter(str(path))  # type: ignore[no-untyped-call]
