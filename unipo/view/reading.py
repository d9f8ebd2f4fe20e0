"""A run directory as it is now, read on as it grows. See `unipo.training.rundir` for what lies in one."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from unipo.errors import ConfigError
from unipo.hold import is_held
from unipo.training.health import health
from unipo.training.rundir import newest_run
from unipo.view.jsonlog import JsonLog, place_of
from unipo.view.tokens import with_derived

# Characters of a response and of a prompt that the table shows.
PREVIEW = 120
# What the index keeps of every response, one list each.
ROWS = (
    "step",
    "row",
    "prompt",
    "prompt_id",
    "reward",
    "score",
    "length",
    "advantage",
    "truncated",
    "traced",
    "preview",
)


class Run:
    """One run. `refresh` reads what is new; everything else answers from memory, or from a place in a file."""

    def __init__(self, path: Path) -> None:
        if not (path / "config.yaml").is_file():
            raise ConfigError(f"{path} is not a run: it has no config.yaml")
        self.path, self.name = path, path.resolve().name
        self.lock = threading.Lock()
        self.generation = 0
        self._logs = {n: JsonLog(path / f"{n}.jsonl") for n in _FILES}
        self._forget()

    def _forget(self) -> None:
        self.series: dict[str, list[float | None]] = {"step": []}
        self.rows: dict[str, list[Any]] = {name: [] for name in ROWS}
        self.prompts: list[str] = []
        self._prompt_of: dict[str, int] = {}
        self._places: list[tuple[int, int]] = []
        self._traces: dict[tuple[int, int], tuple[int, int]] = {}
        self._row_at: dict[tuple[int, int], int] = {}
        self.evaluations: list[dict[str, Any]] = []
        self.events: dict[str, dict[str, Any]] = {}
        for log in self._logs.values():
            log.place = 0

    # -- reading on --------------------------------------------------------------------------------
    def refresh(self, most: int = 1 << 30) -> bool:
        """Read what was written since, at most so many responses. Returns whether some wait to be read."""
        with self.lock:
            restarted = [log.restarted() for log in self._logs.values()]  # all of them, so that each notes its file
            if any(restarted):
                self.generation += 1
                self._forget()
            for line in self._logs["metrics"].lines():
                self._add_metrics(line.record)
            for line in self._logs["evaluations"].lines():
                self.evaluations.append(line.record)
            for line in self._logs["events"].lines():
                self._add_event(line.record)
            if most:  # without responses, their tokens are not looked for
                for line in self._logs["tokens"].lines(read=place_of):
                    self._add_trace(line.record, (line.at, line.size))
            before = self._logs["completions"].place
            for line in self._logs["completions"].lines(most):
                self._add_completion(line.record, (line.at, line.size))
            return self._logs["completions"].waiting() > 0 and self._logs["completions"].place > before

    @property
    def broken(self) -> int:
        """Lines of its files that could not be read."""
        return sum(log.broken for log in self._logs.values())

    def _add_metrics(self, record: dict[str, Any]) -> None:
        n = len(self.series["step"])
        for name, value in record.items():
            if isinstance(value, int | float):
                self.series.setdefault(name, [None] * n).append(float(value))
        for values in self.series.values():
            if len(values) == n:
                values.append(None)

    def _add_event(self, record: dict[str, Any]) -> None:
        name = str(record.get("event", "?"))
        seen = self.events.setdefault(name, {"event": name, "times": 0, "first": record.get("step")})
        seen["times"] += 1
        seen["last"] = record.get("step")
        seen["detail"] = {k: v for k, v in record.items() if k not in ("step", "event")}

    def _add_trace(self, record: dict[str, Any], place: tuple[int, int]) -> None:
        key = (int(record.get("step", -1)), int(record.get("row", -1)))
        self._traces[key] = place
        if key in self._row_at:  # its response was read first
            self.rows["traced"][self._row_at[key]] = 1

    def _add_completion(self, record: dict[str, Any], place: tuple[int, int]) -> None:
        rows, i = self.rows, len(self._places)
        step = int(record.get("step", -1))
        row = rows["row"][-1] + 1 if i and rows["step"][-1] == step else 0
        prompt = _ends(str(record.get("prompt") or ""))
        if prompt not in self._prompt_of:
            self._prompt_of[prompt] = len(self.prompts)
            self.prompts.append(prompt)
        values = {
            "step": step,
            "row": row,
            "prompt": self._prompt_of[prompt],
            "prompt_id": record.get("prompt_id"),
            "reward": finite(record.get("reward")),
            "score": finite(record.get("score")),
            "length": len(record.get("tokens") or ()),
            "advantage": _mean_advantage(record.get("advantage")),
            "truncated": int(bool(record.get("truncated"))),
            "traced": int((step, row) in self._traces),
            "preview": _one_line(str(record.get("text") or "")[: 2 * PREVIEW])[:PREVIEW],
        }
        for name, value in values.items():
            rows[name].append(value)
        self._places.append(place)
        self._row_at[step, row] = i

    # -- answering ---------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self._places)

    @property
    def steps(self) -> int:
        """The last step that was logged."""
        logged = self.series["step"]
        return int(logged[-1] or 0) if logged else 0

    def detail(self, i: int) -> dict[str, Any]:
        """All that is known of the i-th response: prompt, text, answer, and its tokens where they were recorded."""
        record = self._logs["completions"].at(*self._places[i])
        record.pop("tokens", None)
        record = {k: v for k, v in record.items() if k not in ("behaviour_logp", "behaviour_entropy")}
        record["advantage"] = self.rows["advantage"][i]
        trace = self.trace(i)
        if trace is not None:
            record["pieces"] = trace["pieces"]
            record["columns"] = with_derived(trace["columns"], len(trace["pieces"]))
        return clean(record)  # type: ignore[no-any-return]

    def trace(self, i: int) -> dict[str, Any] | None:
        """The token record of the i-th response as it was written, or None."""
        place = self._traces.get((self.rows["step"][i], self.rows["row"][i]))
        record = {} if place is None else self._logs["tokens"].at(*place)
        return record if record.get("pieces") is not None else None

    def config(self) -> dict[str, Any]:
        values = yaml.safe_load(self.config_text())
        return values if isinstance(values, dict) else {}

    def config_text(self) -> str:
        return (self.path / "config.yaml").read_text(encoding="utf-8")

    def method(self) -> dict[str, Any]:
        """What the run wrote down about its method; formula only, or less, if it is older than that."""
        file = self.path / "method.json"
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
        formula = self.path / "method.txt"
        lines = formula.read_text(encoding="utf-8").splitlines() if formula.is_file() else []
        return {"name": str(self.config().get("method", "?")), "formula": lines}

    def state(self) -> str:
        """'finished', 'running', or 'stopped' (no result, no process here that holds it, nothing written for a while)."""
        if is_held(self.path):  # writes nothing during an evaluation, which may be long
            return "running"
        begun = (self.path / "config.yaml").stat().st_mtime
        times = {n: f.stat().st_mtime for n in _FILES if (f := self.path / f"{n}.jsonl").exists()}
        result = self.path / "result.json"
        if result.exists() and result.stat().st_mtime >= times.get("metrics", begun):
            return "finished"
        # A process on another machine is known by what it writes.
        written = max(begun, *times.values())
        seconds = [x for x in self.series.get("seconds/step", ())[-5:] if x is not None]
        patience = max(120.0, 10 * max(seconds, default=0.0))
        return "running" if time.time() - written < patience else "stopped"

    def alarms(self) -> list[dict[str, str]]:
        return [vars(a) for a in health(self.series, self.evaluations)]


_FILES = ("metrics", "evaluations", "events", "tokens", "completions")


def find_runs(paths: list[str], root: Path = Path("runs")) -> list[Path]:
    """The run directories meant: each path a run or a directory of runs; without any, the newest run below `root`."""
    if not paths:
        newest = newest_run(root)
        if newest is None:
            raise ConfigError(f"there is no run in {root}/ yet; name one, or start one with: unipo train")
        return [newest]
    found: list[Path] = []
    for text in paths:
        path = Path(text)
        inside = sorted(p.parent for p in path.glob("*/config.yaml")) if path.is_dir() else []
        if (path / "config.yaml").is_file():
            found.append(path)
        elif inside:
            found += inside
        else:
            near = ", ".join(sorted(p.parent.name for p in path.parent.glob("*/config.yaml"))[-5:])
            raise ConfigError(
                f"{path} is neither a run nor a directory of runs{f' (beside it: {near})' if near else ''}"
            )
    return list(dict.fromkeys(found))


def finite(x: Any) -> float | None:
    """A number that JSON has a name for, or None."""
    return float(x) if isinstance(x, int | float) and math.isfinite(x) else None


def clean(value: Any) -> Any:
    """The same with None for nan and infinities, for which JSON has no name."""
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    return finite(value) if isinstance(value, float) else value


def _mean_advantage(value: Any) -> float | None:
    """The response's advantage; an older run wrote one per token."""
    if isinstance(value, list):
        known = [x for x in value if finite(x) is not None]
        return finite(sum(known) / len(known)) if known else None
    return finite(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _ends(prompt: str) -> str:
    """A prompt in a line: whole, or its beginning and its end, where it differs from others."""
    if len(prompt) <= PREVIEW:
        return _one_line(prompt)
    return f"{_one_line(prompt[: PREVIEW // 3])} … {_one_line(prompt[-2 * PREVIEW // 3 :])}"
