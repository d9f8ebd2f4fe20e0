"""One process at a time in a directory: a lock that ends with the process, however that ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from unipo.errors import ConfigError

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is held, and nothing looks held
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
# A reader that asks `is_held` has the lock for an instant, which must not turn a training run away.
_PATIENCE = 1.0


def hold(folder: Path) -> TextIO:
    """Hold a directory until the returned file is closed. Raises ConfigError while another process does."""
    file = (folder / LOCK).open("w")
    deadline = time.monotonic() + _PATIENCE
    while not _locked(file, shared=False):
        if time.monotonic() > deadline:
            file.close()
            raise ConfigError(f"another process is working in {folder}; wait for it, or give another directory")
        time.sleep(0.02)
    return file


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold a directory, made if need be, for the length of a block. Raises ConfigError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = hold(folder)
    except OSError as error:
        raise ConfigError(f"cannot write into {folder}: {error.strerror}; give another directory") from error
    with held:
        yield


def is_held(folder: Path) -> bool:
    """Whether a process of this machine holds the directory."""
    try:
        with (folder / LOCK).open() as file:
            return not _locked(file, shared=True)
    except OSError:
        return False


def _locked(file: TextIO, shared: bool) -> bool:
    """Try to lock. True also where the file system has no locks: there a run is not held up for want of them."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
