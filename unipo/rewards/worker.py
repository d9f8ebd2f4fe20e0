"""The child process that runs one reward function, call after call, until its parent closes the line.

Run as a script by `unipo.rewards.isolation`.  It imports the standard library only (never unipo, never
torch), so it is up in a few hundredths of a second plus whatever the reward function itself imports.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from types import CodeType
from typing import Any

ORPHAN_SECONDS = 30.0


class NotPlainError(TypeError):
    """A reward function returned something that is neither a number, None, text nor a list of these."""


def plain(value: Any) -> Any:
    """Turn what a reward function returned into plain Python: numpy and torch scalars and arrays become floats and lists.

    Raises NotPlainError for anything else, so that no foreign object crosses the process boundary.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return value if type(value) in (bool, int, float) else float(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if hasattr(value, "__float__"):
        return float(value)
    raise NotPlainError(f"returned a {type(value).__name__}: {value!r:.200}")


class _AsRead(SourceFileLoader):
    """A file as it was read: not as it is by now, nor as its .pyc has it, which only knows size and whole seconds."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.source, self.path)
        return code


def load_source(source: bytes, path: str, module_name: str, search_siblings: bool) -> Any:
    """Import `source`, which was read from the file at `path`, under `module_name`.

    search_siblings appends its folder to sys.path (at the end, so that a neighbour called like a standard
    module cannot shadow it).  Raises whatever the file raises.
    """
    folder = os.path.dirname(path)
    if search_siblings and folder not in sys.path:
        sys.path.append(folder)
    loader = _AsRead(module_name, path, source)
    spec = importlib.util.spec_from_file_location(module_name, path, loader=loader)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(module_name, None)
        raise
    return module


def _load(order: dict[str, Any]) -> Callable[..., Any]:
    sys.path[:] = order["sys_path"]
    if order["memory_mb"] is not None:
        import resource

        limit = order["memory_mb"] * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if order["payload"] is not None:
        function: Callable[..., Any] = pickle.loads(order["payload"])
        return function
    found: Any = load_source(order["source"], order["path"], order["module"], order["search_siblings"])
    for part in order["name"].split("."):
        found = getattr(found, part)
    target: Callable[..., Any] = found
    return target


def _leave_with_parent(parent: int) -> None:
    """Exit when the parent has gone, also while the reward function sleeps."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _guard(seconds: float) -> None:
    """Let the kernel end this process if it still computes long after its deadline (0: disarm).

    A function stuck in C code keeps the interpreter's lock, so the thread above cannot run; without this
    a worker whose parent was killed would burn a core for ever.  The timer counts processor time of all
    threads, hence the factor.  SIGALRM is left to the reward function (math-verify uses it).
    """
    signal.setitimer(signal.ITIMER_PROF, seconds * (os.cpu_count() or 1))


def _answer(function: Callable[..., Any], message: bytes) -> tuple[str, Any]:
    try:
        seconds, keywords = pickle.loads(message)
        _guard(seconds + ORPHAN_SECONDS)
        return "ok", plain(function(**keywords))
    except NotPlainError as error:
        return "not_number", str(error)
    except BaseException:  # sys.exit in a reward function must not look like a dead machine
        return "raised", traceback.format_exc()
    finally:
        _guard(0.0)


def main() -> None:
    """Serve calls on the pipe named by the first argument until the parent closes it."""
    from multiprocessing.connection import Connection

    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    line = Connection(descriptor)
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        function = _load(pickle.loads(line.recv_bytes()))
    except BaseException:
        line.send_bytes(pickle.dumps(("failed", traceback.format_exc())))
        return
    line.send_bytes(pickle.dumps(("ready", None)))
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):  # the parent closed the line: nothing left to do
        while True:
            line.send_bytes(pickle.dumps(_answer(function, line.recv_bytes())))


if __name__ == "__main__":
    main()
