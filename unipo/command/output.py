"""How commands print: results on standard output, everything else on standard error, and only from one rank."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any


def first_rank() -> bool:
    """Is this the process that prints? Under torchrun, the one of rank 0."""
    return os.environ.get("RANK", "0") == "0"


def json_line(record: Mapping[str, Any] | Sequence[Any]) -> None:
    """One line of JSON on standard output. Numbers JSON has no name for (nan, inf) are null."""
    if first_rank():
        print(json.dumps(_plain(record), ensure_ascii=False), flush=True)


def line(text: str = "") -> None:
    if first_rank():
        print(text, flush=True)


def note(text: str) -> None:
    if first_rank():
        print(text, file=sys.stderr, flush=True)


@contextmanager
def results_only(wanted: bool) -> Iterator[None]:
    """Send what libraries and rewards print to standard error meanwhile, so that standard output holds results."""
    if not wanted:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Columns aligned with spaces; the last one runs on. Nothing is cut, so that it can be searched and piped."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header) - 1)]
    lines = [
        "  ".join([*(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """What JSON can hold: mappings, lists, text, finite numbers; a part is shown as Python writes it."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if value is None or isinstance(value, bool | int | str) else repr(value)
