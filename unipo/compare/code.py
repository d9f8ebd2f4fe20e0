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

# In a run's directory: the states of the code that worked on it, one a line.
NOTE = "code.txt"


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


def worked_on(folder: Path, begun: bool) -> str:
    """Note in a run's directory that the code as it is now goes on with it. Returns all states that did, "+" between them.

    begun: it has a checkpoint to go on from; otherwise nothing of what other code did is left.
    """
    file, now = folder / NOTE, code_state()
    before = (file.read_text().split("\n") if file.is_file() else [""]) if begun else []
    known = list(dict.fromkeys([*before, now]))
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(known))
    return "+".join(known)


def states(outcomes: Iterable[Outcome]) -> list[str]:
    """The states of the code that made these runs; "" is that of what was made before it was noted down."""
    return sorted({state for o in outcomes for state in o.code.split("+")})


def mixed(codes: Iterable[str]) -> str:
    """What a reader is told of runs that different code made; nothing of those that one made."""
    n = len(set(codes))
    return f"runs of {n} states of the code" if n > 1 else ""
