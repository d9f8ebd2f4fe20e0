"""What one sees while a run goes on: a live line in a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unipo.evaluate.accuracy import Interval
from unipo.method import Method
from unipo.training.health import ENDS, health
from unipo.training.sparkline import sparkline

# A log file gets a line at each of these many seconds, and for the first and last step.
LOG_EVERY = 10.0


class Display:
    """Writes to standard error, so that standard output stays for results."""

    def __init__(self, shown: bool = True) -> None:
        self.console = Console(file=sys.stderr, quiet=not shown, highlight=False)
        self.live = shown and self.console.is_terminal
        self._progress: Progress | None = None
        self._task: Any = None
        self._total = 0
        self._last = 0.0
        self._series: dict[str, list[float | None]] = {"step": []}
        self._evaluations: list[dict[str, Any]] = []
        self._warned: set[str] = set()

    def note(self, text: str) -> None:
        # A log file gets one line per note, however long; a terminal wraps at its own width.
        """A line of text, above the bar if there is one."""
        self.console.print(text, markup=False, soft_wrap=not self.console.is_terminal)

    def tracker_failed(self, name: str, what: str) -> None:
        """Say that a tracker failed, and that nothing is lost."""
        self.note(f"tracker {name} failed: {what}. The run goes on; its directory has every number")

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Show that something is going on, and how long it took if that was noticeable."""
        start = time.perf_counter()
        if self.live and self._progress is None:
            with self.console.status(what):
                yield
        else:
            yield
        took = time.perf_counter() - start
        if took > 1 or not self.live:
            self.note(f"{what}: {took:.1f} s")

    def start(self, total: int, done: int) -> None:
        """Show the bar: `done` of `total` steps lie behind."""
        self._total = total
        if not self.live or done >= total:
            return
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=False,
        )
        self._task = self._progress.add_task("step", total=total, completed=done, numbers="")
        self._progress.start()

    def sampling(self, finished: int) -> None:
        """Called while responses are written; shown only live."""
        if self._progress is not None and time.perf_counter() - self._last > 0.5:
            self._last = time.perf_counter()
            self._progress.update(self._task, description=f"{finished} responses")

    def step(self, number: int, metrics: dict[str, float]) -> None:
        """Move the bar on and show this step's numbers; warn where they look wrong."""
        self._watch(number, metrics)
        if self._progress is not None:
            # Numbers that do not fit would push the bar and the times out of the line.
            line = step_line(metrics, 8 if self.console.width >= 150 else 6 if self.console.width >= 130 else 2)
            if self.console.width >= 100:
                line = f"{sparkline(self._series.get('reward/mean', ()), 12)} {line}"
            self._progress.update(self._task, completed=number, numbers=line, description="step")
            return
        line = step_line(metrics)
        now = time.perf_counter()
        if number == 1 or number == self._total or now - self._last >= LOG_EVERY:
            self._last = now
            self.note(f"step {number}/{self._total}  {line}")

    def _watch(self, number: int, metrics: dict[str, float]) -> None:
        """Say once what is going wrong, when it begins to."""
        n = len(self._series["step"])
        for name, value in {"step": float(number), **metrics}.items():
            self._series.setdefault(name, [None] * n).append(value)
        for values in self._series.values():
            if len(values) == n:
                values.append(None)
        # A few steps say little, and would be called a trend.
        for alarm in health(self._series, self._evaluations) if n + 1 >= ENDS else ():
            if alarm.name not in self._warned:
                self._warned.add(alarm.name)
                self.note(f"step {number}: warning: {alarm.title}. {alarm.text}")

    def accuracy(self, when: str, interval: Interval, what: str = "accuracy") -> None:
        """A held-out evaluation, with its interval."""
        step = self._series["step"][-1] if self._series["step"] else 0
        self._evaluations.append({"step": step, **interval.as_dict()})
        self.note(
            f"held-out {what} {when}: {interval.accuracy:.3f}  (95 % interval {interval.low:.3f} to {interval.high:.3f}, "
            f"{interval.problems} problems)"
            + (f"; {interval.unscored} responses could not be scored and count 0" if interval.unscored else "")
        )

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def measure_of(method: Method) -> str:
    """What a held-out evaluation of this method measures; see `unipo.evaluate.heldout`."""
    if method.online:
        return "accuracy"
    return "share of pairs ranked right" if "preference" in method.source.adds else "probability per token"


def step_line(metrics: dict[str, float], most: int = 8) -> str:
    """The few numbers worth a glance, those that exist, at most so many."""
    shown = (
        ("reward", "reward/mean", "{:.3f}"),
        ("loss", "loss", "{:.4f}"),
        ("length", "length/mean", "{:.1f}"),
        ("entropy", "entropy", "{:.3f}"),
        ("grad", "grad_norm", "{:.2f}"),
        ("s/step", "seconds/step", "{:.2f}"),
        ("no signal", "groups/zero_variance", "{:.0%}"),
        ("clipped", "clip_fraction", "{:.0%}"),
    )
    found = [f"{label} {form.format(metrics[name])}" for label, name, form in shown if name in metrics]
    return "  ".join(found[:most])
