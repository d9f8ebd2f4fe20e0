"""Which code made a result: runs of a directory that is gone on with after a change are told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import unipo

if TYPE_CHECKING:
    from unipo.compare.outcome import Outcome


@cache
def code_state() -> str:
    """A short name of this library's source files as they are when it is first asked for in a process."""
    return digest(Path(unipo.__file__).parent)


def digest(folder: Path) -> str:
    """12 hex digits of the names and contents of all Python files below a directory."""
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        text = file.read_bytes()
        found.update(f"{file.relative_to(folder).as_posix()} {len(text)}\n".encode() + text)
    return found.hexdigest()[:12]


def states(outcomes: Iterable[Outcome]) -> list[str]:
    """The states of the code that made these runs; "" is that of runs from before it was noted down."""
    return sorted({o.code for o in outcomes})


def mixed(codes: Iterable[str]) -> str:
    """What a reader is told of runs that different code made; nothing of those that one made."""
    n = len(set(codes))
    return f"runs of {n} states of the code" if n > 1 else ""
