"""Several trackers as one that never raises: failures are counted, told once, and cost the run nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unipo.errors import ConfigError
from unipo.track.tracker import Beginning, Tracker, flat, make_tracker

Told = Callable[[str, str], None]


class Trackers:
    """Passes everything on to each tracker. told: (name, what went wrong), called at the first failure of each.

    A tracker that could not start is not asked again. One that fails later is, as a connection may come back; what it
    missed stands in the run directory, and `failures` says how often it failed.
    """

    def __init__(self, names: Sequence[str], told: Told | None = None) -> None:
        if len(set(names)) < len(names):
            raise ConfigError(f"a tracker is named twice: {', '.join(names)}")
        self.waiting: dict[str, Tracker] = {name: make_tracker(name) for name in names}
        self.failures: Counter[str] = Counter()
        self.told = told
        self._running: dict[str, Tracker] = {}

    def begin(self, run: Path, config: Mapping[str, Any], formula: str, after: int) -> None:
        """Start those that have not started. Called before every first number; does nothing afterwards."""
        if not self.waiting:
            return
        waiting, self.waiting = self.waiting, {}
        beginning = Beginning(run, flat(config), after)
        for name, tracker in waiting.items():
            if self._tried(name, lambda t=tracker: t.start(beginning)):  # type: ignore[misc]
                self._running[name] = tracker
        if formula and not after:
            self._each(lambda t: t.text("method", formula))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Numbers of one step, to all of them."""
        self._each(lambda t: t.log(metrics, step))

    def summary(self, values: Mapping[str, float]) -> None:
        """What the whole run came to, to all of them."""
        self._each(lambda t: t.summary(values))

    def close(self) -> None:
        """The end, for all of them."""
        self._each(lambda t: t.close())
        self._running.clear()

    def _each(self, work: Callable[[Tracker], None]) -> None:
        for name, tracker in self._running.items():
            self._tried(name, lambda t=tracker: work(t))  # type: ignore[misc]

    def _tried(self, name: str, work: Callable[[], None]) -> bool:
        try:
            work()
        except Exception as error:  # whatever a service raises: it must not end a run, and is counted
            self.failures[name] += 1
            if self.failures[name] == 1 and self.told is not None:
                self.told(name, f"{type(error).__name__}: {error}")
            return False
        return True
