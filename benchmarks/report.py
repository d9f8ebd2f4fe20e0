"""From measured samples to rows, a table and a line-by-line record."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

# samples[contender][metric] is one number for each repetition, in the order they were measured.
Samples = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Row:
    """One comparison. ratio = unipo / peer, the median over pairs: below 1 unipo is faster or smaller.

    Times are seconds, memory is MiB. `unipo` and `ratio` are None in a run without unipo. `ratio_range` holds the
    least and the greatest ratio of a pair.
    """

    shape: str
    metric: str
    unipo: float | None
    peer: float
    ratio: float | None
    peer_name: str
    dtype: str
    pairs: int
    ratio_range: tuple[float, float] | None


def row(shape: str, dtype: str, metric: str, ours: list[float] | None, peer_name: str, theirs: list[float]) -> Row:
    """Medians of both sides and the median of the ratios of pairs measured one after the other."""
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)] if ours else None
    return Row(
        shape=shape,
        metric=metric,
        unipo=median(ours) if ours else None,
        peer=median(theirs),
        ratio=median(ratios) if ratios else None,
        peer_name=peer_name,
        dtype=dtype,
        pairs=len(theirs),
        ratio_range=(min(ratios), max(ratios)) if ratios else None,
    )


def rows_of(shape: str, dtype: str, samples: Samples, floor: dict[str, float] | None) -> list[Row]:
    """Every comparison that the samples allow: each peer's metrics, then the floor beside unipo's own times."""
    ours = samples.get("unipo", {})
    rows = [
        row(shape, dtype, metric, ours.get(metric), peer, theirs)
        for peer, metrics in samples.items()
        if peer != "unipo"
        for metric, theirs in metrics.items()
    ]
    for metric, seconds in (floor or {}).items():
        mine = ours.get(metric)
        rows.append(row(shape, dtype, metric, mine, "floor", [seconds] * (len(mine) if mine else 1)))
    return rows


def hardware() -> str:
    """A short name of this machine's processor and the cores this process may use, fit for a file name."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        model = found.group(1) if found else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return re.sub(r"[^a-z0-9]+", "-", f"{model} {cores} cores".lower()).strip("-")


def record(folder: Path, head: dict[str, Any], lines: list[dict[str, Any]]) -> Path:
    """Append one run to DATE-HARDWARE.jsonl: the line of its circumstances, then its lines."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    path = folder / f"{now:%Y-%m-%d}-{hardware()}.jsonl"
    head = {"run": now.isoformat(timespec="seconds"), "hardware": hardware(), "system": platform.platform()} | head
    with path.open("a") as out:
        for line in (head, *lines):
            out.write(json.dumps(line) + "\n")
    return path


def as_line(row: Row) -> dict[str, Any]:
    """The row as a JSON object, numbers kept to five significant digits."""
    return {key: _rounded(value) for key, value in asdict(row).items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return [_rounded(one) for one in value] if isinstance(value, tuple) else value


def print_table(rows: list[Row]) -> None:
    """The rows for people; ratio below 1 means unipo is faster or smaller."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="unipo / peer: below 1 unipo is faster or smaller; medians")
    for name in ("shape", "metric", "peer", "unipo", "the peer", "ratio", "least..greatest"):
        table.add_column(name, justify="left" if name in ("shape", "metric", "peer") else "right", no_wrap=True)
    for one in rows:
        table.add_row(
            one.shape,
            one.metric,
            one.peer_name,
            _cell(one.unipo),
            _cell(one.peer),
            _cell(one.ratio),
            "-" if one.ratio_range is None else f"{one.ratio_range[0]:.2f}..{one.ratio_range[1]:.2f}",
        )
    Console(width=110).print(table)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
