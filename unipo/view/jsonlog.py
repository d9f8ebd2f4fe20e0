"""Reading a JSONL file that is still being written, line by line and only once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Line:
    """One complete line: where it lies in the file, and what it holds."""

    at: int
    size: int
    record: dict[str, Any]


class JsonLog:
    """The lines of a file that were not read yet. Lines that are not JSON objects are counted in `broken`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = 0
        self.broken = 0
        self._file_id: tuple[int, int] | None = None

    def restarted(self) -> bool:
        """Was the file replaced or cut since the last reading (a resumed run does that)? Then it is read anew."""
        try:
            seen = self.path.stat()
        except OSError:
            gone = self._file_id is not None
            self._file_id, self.place = None, 0
            return gone
        now = (seen.st_dev, seen.st_ino)
        again = self._file_id is not None and (now != self._file_id or seen.st_size < self.place)
        if again:
            self.place = self.broken = 0
        self._file_id = now
        return again

    def lines(
        self, most: int = 1 << 30, read: Callable[[bytes], dict[str, Any] | None] | None = None
    ) -> Iterator[Line]:
        """Up to so many complete lines after the last one read; one that is still being written waits.

        read: the record of a line, where less than all of it is wanted.
        """
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self.place)
            while most > 0:
                raw = file.readline()
                if not raw.endswith(b"\n"):
                    return
                at, self.place = self.place, self.place + len(raw)
                record = (read or _record)(raw)
                if record is None:
                    self.broken += bool(raw.strip())
                    continue
                most -= 1
                yield Line(at, len(raw), record)

    def waiting(self) -> int:
        """Bytes that are not read yet."""
        try:
            return max(0, self.path.stat().st_size - self.place)
        except OSError:
            return 0

    def at(self, place: int, size: int) -> dict[str, Any]:
        """The record that lies there; {} if the file has changed meanwhile."""
        try:
            with self.path.open("rb") as file:
                file.seek(place)
                return _record(file.read(size)) or {}
        except OSError:
            return {}


def place_of(raw: bytes) -> dict[str, Any] | None:
    """Step and row of a token record, which come first in it, without reading the rest."""
    found = _PLACE.match(raw)
    return {"step": int(found[1]), "row": int(found[2])} if found else _record(raw)


_PLACE = re.compile(rb'\{"step": (\d+), "row": (\d+),')


def _record(raw: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(raw)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
