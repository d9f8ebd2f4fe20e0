"""The run directory: everything a run leaves behind, in plain formats.

config.yaml        the resolved configuration      method.txt    the formula that was run
metrics.jsonl      one line per step               completions.jsonl   sampled responses
tokens.jsonl       some of them token by token  method.json   paper, changes
events.jsonl       what happened, by name          checkpoints/  see `unipo.training.checkpoint`
evaluations.jsonl  held-out accuracy, with intervals   evaluations/  what `unipo eval` found, see `unipo.evaluate.record`
result.json        the closing summary             .lock         held while a process trains, see `unipo.hold`
Trackers (`unipo.track`) show the same numbers elsewhere, after they were written here.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import yaml

from unipo.errors import ConfigError, TrainingError
from unipo.hold import hold
from unipo.track.trackers import Told, Trackers

LOGS = ("metrics", "completions", "tokens", "events", "evaluations")


def new_run_path(method: str, root: Path = Path("runs")) -> Path:
    """Make runs/METHOD-DATE-TIME, with a number added if it is taken: two runs that start together get two."""
    base = root / f"{method}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, n = base, 2
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            path, n = base.with_name(f"{base.name}-{n}"), n + 1
        except OSError as error:
            raise _cannot_write(path, error) from error


def newest_run(root: Path = Path("runs")) -> Path | None:
    """The run below `root` that was started last, if there is one."""
    newest = max(root.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime, default=None)
    return newest.parent if newest else None


class RunDir:
    """Opens or creates a run directory, holds it and appends to it. Only the first rank does (`active`)."""

    def __init__(
        self, path: Path, resume: bool, active: bool = True, track: Sequence[str] = (), told: Told | None = None
    ) -> None:
        """track: names of trackers; told: hears (event, detail) when one of them first fails."""
        self.path, self.active, self.told = path, active, told
        self._files: dict[str, TextIO] = {}
        self._begun: tuple[dict[str, Any], str, int] = ({}, "", 0)
        self.trackers = Trackers(track if active else (), self._tracker_failed)
        self._last = 0
        self._hold: TextIO | None = None
        if not active:
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._hold = hold(path)
            if not resume:
                self._begin()
            (path / "checkpoints").mkdir(exist_ok=True)
        except (OSError, ConfigError) as error:
            if self._hold is not None:
                self._hold.close()
            raise (_cannot_write(path, error) if isinstance(error, OSError) else error) from error

    def _begin(self) -> None:
        """Make sure that nothing is lost by a new run here, and drop what one without a step left behind."""
        if (self.path / "metrics.jsonl").exists():
            raise ConfigError(f"{self.path} already holds a run; pass --resume to go on with it, or another --run")
        if (self.path / "method.json").exists():
            self.cut_after(-1)
        elif taken := [f"{name}.jsonl" for name in LOGS if (self.path / f"{name}.jsonl").exists()]:
            raise ConfigError(f"{self.path} holds {', '.join(taken)}, which no run wrote; choose another with --run")

    def write_config(self, config: Mapping[str, Any], method: Mapping[str, Any]) -> None:
        """method: see `unipo.training.record.method_record`."""
        if self.active:
            self._begun = (dict(config), "\n".join(method["formula"]), 0)
            _replace(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
            _replace(self.path / "method.txt", "\n".join(method["formula"]) + "\n")
            _replace(self.path / "method.json", json.dumps(method, indent=1, ensure_ascii=False) + "\n")

    def append(self, name: str, record: Mapping[str, Any]) -> int:
        """One JSON line. Returns its length in bytes; a full disk is an error that says so."""
        if not self.active:
            return 0
        line = json.dumps(record, ensure_ascii=False) + "\n"
        try:
            if name not in self._files:
                self._files[name] = (self.path / f"{name}.jsonl").open("a", encoding="utf-8")
            self._files[name].write(line)
            self._files[name].flush()
        except OSError as error:
            raise TrainingError(
                f"cannot write {name}.jsonl in {self.path}: {error.strerror}. Free some space and go on with --resume"
            ) from error
        return len(line.encode())

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """A line of numbers, to the file and to trackers."""
        self.append("metrics", {"step": step, **values})
        self._show(values, step)

    def evaluation(self, step: int, when: str, values: Mapping[str, float]) -> None:
        """A held-out evaluation: before, during or after training."""
        self.append("evaluations", {"step": step, "when": when, **values})
        self._show({f"evaluation/{k}": values[k] for k in ("accuracy", "low", "high")}, step)

    def _show(self, values: Mapping[str, float], step: int) -> None:
        """Hand numbers to the trackers, which begin with the first of them."""
        if self.active:
            self._last = step
            self.trackers.begin(self.path, *self._begun)
            self.trackers.log(values, step)

    def _tracker_failed(self, name: str, what: str) -> None:
        self.event(self._last, f"tracker {name} failed", detail=what)
        if self.told is not None:
            self.told(name, what)

    def event(self, step: int, name: str, **details: Any) -> None:
        """A line about something that was counted, skipped or failed."""
        self.append("events", {"step": step, "event": name, **details})

    def cut_after(self, step: int) -> None:
        """Drop what was logged after a checkpoint that is being resumed from: it will be done again, identically."""
        if not self.active:
            return
        self._begun = (*self._begun[:2], max(0, step))
        for file in self._files.values():  # or what is written next would go into the file that is replaced
            file.close()
        self._files.clear()
        for name in LOGS:
            path = self.path / f"{name}.jsonl"
            if path.exists():
                # Not splitlines: a response may hold other characters that it takes for the end of a line.
                # A last line that a kill cut short may end within a character.
                lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
                kept = [line for line in lines if line and _step_of(line) <= step]
                _replace(path, "".join(f"{line}\n" for line in kept))

    def result(self, values: Mapping[str, Any]) -> None:
        """What the run came to."""
        if self.active:
            (self.path / "result.json").write_text(json.dumps(values, indent=1) + "\n")
            ends = {k: v for k in ("before", "after") if isinstance(v := values.get(k), Mapping)}
            self.trackers.summary({f"{end}/{k}": x for end, v in ends.items() for k, x in v.items()})

    def close(self) -> None:
        """Close the files and end the trackers."""
        self.trackers.close()
        for name, count in self.trackers.failures.items():
            self.event(self._last, f"tracker {name} failed in all", count=count)
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._hold is not None:
            self._hold.close()


def _cannot_write(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write the run directory {path}: {error.strerror}; choose another with --run")


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def records(file: Path) -> list[dict[str, Any]]:
    """The records of a log, none where there is no such file. A last line that a kill cut short is none, as for a resume.

    Raises TrainingError for any other line that cannot be read: without it, sums over a run would be too small.
    """
    found = []
    # Bytes, and not splitlines: a response may hold other characters that it takes for the end of a line.
    *whole, _ = file.read_bytes().split(b"\n") if file.is_file() else [b""]
    for number, line in enumerate(whole, 1):
        try:
            found.append(json.loads(line.decode("utf-8")))
        except ValueError as error:
            raise TrainingError(f"{file}, line {number} is damaged ({error}); delete it to go on without it") from error
    return found


def _step_of(line: str) -> float:
    """Step of a log line; a line cut short by a kill belongs to no kept step."""
    try:
        return float(json.loads(line).get("step", float("inf")))
    except json.JSONDecodeError:
        return float("inf")
