"""Reward functions in worker processes that can be killed.

A reward function meets text that nobody chose: one answer may send it into an endless loop, into C code
that no signal interrupts, or out of memory.  So each call runs in a child process under a wall-clock
deadline.  A child that is late is killed with everything it started and replaced; the other results of the
batch are kept.  SIGALRM is never used in this process: it works in the main thread only and does not
interrupt C code.

This is protection against hanging, not a sandbox: the function has the rights of the user.  Results near
the deadline depend on how busy the machine is; choose a deadline far above the ordinary time of a call.
Works on Linux and macOS.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from unipo.errors import ConfigError, RewardError
from unipo.rewards.policy import Failure, Outcome, check_positive

WORKER = Path(__file__).with_name("worker.py")
START_SECONDS = 120.0
FILE_MODULE_PREFIX = "unipo_file_"


@dataclass(frozen=True)
class Target:
    """Where a worker finds its function: in a file (path, name and source), or pickled (payload).

    source: of the file as it was read, which every worker runs, whatever became of the file.  digest: of the source, so
    that an edited one is another target.
    """

    label: str
    path: str = ""
    name: str = ""
    module: str = ""
    search_siblings: bool = True
    payload: bytes | None = None
    digest: str = ""
    source: bytes = field(default=b"", repr=False, compare=False)


def file_target(path: str | Path, name: str, *, search_siblings: bool = True, source: bytes | None = None) -> Target:
    """The function `name` of the Python file at `path`. source: what it held; None: what it holds now."""
    full = Path(path).resolve()
    source = full.read_bytes() if source is None else source
    module, digest = FILE_MODULE_PREFIX + full.stem, hashlib.sha256(source).hexdigest()
    return Target(f"{path}:{name}", str(full), name, module, search_siblings, digest=digest, source=source)


def target_of(function: Callable[..., Any]) -> Target:
    """How to hand a Python callable to a worker.

    Pickled where that works.  Lambdas, closures and whatever lives in `__main__` (a script, a notebook)
    cannot be found by another process; they travel with cloudpickle if it is installed.  Raises ConfigError
    otherwise: running them in this process would silently give up the protection.
    """
    label = getattr(function, "__qualname__", type(function).__name__)
    home = sys.modules.get(getattr(function, "__module__", None) or "")
    if home is not None and home.__name__.startswith(FILE_MODULE_PREFIX) and getattr(home, label, None) is function:
        return file_target(str(home.__file__), label, source=getattr(home.__loader__, "source", None))
    try:
        payload = pickle.dumps(function)
        reason = "it lives in __main__, which another process cannot import" if b"__main__" in payload else ""
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        payload, reason = b"", f"it cannot be pickled ({error})"
    if FILE_MODULE_PREFIX.encode() in payload:
        raise ConfigError(f"{label!r} comes from a file loaded by its path; pass it as 'path/to/file.py:name' instead")
    if reason:
        payload = _cloudpickled(function, label, reason)
    return Target(label, payload=payload)


def _cloudpickled(function: Callable[..., Any], label: str, reason: str) -> bytes:
    if importlib.util.find_spec("cloudpickle") is None:
        raise ConfigError(
            f"reward function {label!r} cannot be sent to a worker process: {reason}. Put it in a file and pass "
            "'rewards.py:function', or pip install cloudpickle, or pass isolate=False to run it in this process "
            "(then nothing can stop it when it hangs)"
        )
    import cloudpickle

    payload: bytes = cloudpickle.dumps(function)
    return payload


def available_processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


class _Worker:
    """One child process and the line to it. `index` is the call it works on, None while idle or starting."""

    def __init__(self, target: Target, memory_mb: int | None) -> None:
        ours, theirs = Pipe(duplex=True)
        # A fixed hash seed makes the order of sets, and with it sympy's simplifications, the same in every worker.
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONHASHSEED": "0"}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(WORKER), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,
                env=environment,
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.line: Connection = ours
        self.ready = False
        self.index: int | None = None
        self.deadline = time.monotonic() + START_SECONDS
        order = {**vars(target), "sys_path": list(sys.path), "memory_mb": memory_mb}
        with contextlib.suppress(OSError):  # a child that is already gone shows itself at the first receive
            self.line.send_bytes(pickle.dumps(order))

    @property
    def waited_for(self) -> bool:
        return not self.ready or self.index is not None

    def receive(self) -> tuple[str, Any]:
        """The next message; ("gone", exit code) when the process has ended."""
        try:
            kind, value = pickle.loads(self.line.recv_bytes())
            return kind, value
        except (EOFError, OSError):
            self.kill()
            return "gone", self.process.returncode

    def kill(self) -> None:
        """End the process and every process it started. Once only: a reaped process id may belong to someone else."""
        if self.line.closed:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # already gone; macOS says EPERM for a zombie
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.line.close()


class WorkerPool:
    """Up to `workers` child processes running one function, started when first needed.

    run() may be called from any thread; calls from several threads take turns.
    memory_mb: limit on the address space of a worker (Linux), None for no limit.
    """

    def __init__(self, target: Target, workers: int | None = None, memory_mb: int | None = None) -> None:
        if os.name != "posix":
            raise ConfigError(
                "reward isolation needs Linux or macOS; pass isolate=False to run rewards in this process"
            )
        count = min(8, available_processors()) if workers is None else workers
        check_positive(f"worker pool of {target.label}", workers=count)
        self.target, self.size, self.memory_mb = target, count, memory_mb
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()

    def run(self, calls: Sequence[Mapping[str, Any]], seconds: float) -> list[Outcome]:
        """Call the function once per mapping of keyword arguments, each under a deadline of `seconds`.

        Returns one outcome per call, in order.  The clock of a call starts when a loaded worker takes it up.
        Raises RewardError when a worker cannot load the function at all.
        """
        check_positive(f"worker pool of {self.target.label}", seconds=seconds)
        outcomes: dict[int, Outcome] = {}
        pending: deque[tuple[int, bytes]] = deque()
        for index, call in enumerate(calls):
            try:
                pending.append((index, pickle.dumps((seconds, dict(call)))))
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                outcomes[index] = Outcome(
                    failure=Failure("raised", f"its arguments cannot be sent to a worker: {error}")
                )
        with self._lock:
            try:
                while pending or any(worker.index is not None for worker in self._workers):
                    self._assign(pending, seconds)
                    self._collect(outcomes, seconds)
            finally:
                for worker in [w for w in self._workers if w.index is not None]:  # only after an exception
                    self._drop(worker)
        return [outcomes[index] for index in range(len(calls))]

    def _assign(self, pending: deque[tuple[int, bytes]], seconds: float) -> None:
        for worker in [w for w in self._workers if w.ready and w.index is None]:
            if not pending:
                return
            index, message = pending.popleft()
            try:
                worker.line.send_bytes(message)
            except OSError:  # it died while idle, which is not the fault of this call
                pending.appendleft((index, message))
                self._drop(worker)
                continue
            worker.index, worker.deadline = index, time.monotonic() + seconds
        starting = sum(not worker.ready for worker in self._workers)
        while len(self._workers) < self.size and starting < len(pending):
            self._workers.append(_Worker(self.target, self.memory_mb))
            starting += 1

    def _collect(self, outcomes: dict[int, Outcome], seconds: float) -> None:
        watched = [worker for worker in self._workers if worker.waited_for]
        if not watched:
            return
        left = min(worker.deadline for worker in watched) - time.monotonic()
        heard = wait([worker.line for worker in watched], timeout=max(0.0, left))
        for worker in watched:
            if worker.line in heard:
                self._hear(worker, outcomes)
            elif time.monotonic() >= worker.deadline:
                self._late(worker, outcomes, seconds)

    def _hear(self, worker: _Worker, outcomes: dict[int, Outcome]) -> None:
        kind, value = worker.receive()
        if not worker.ready:
            if kind != "ready":
                self._drop(worker)
                raise RewardError(f"a worker could not load the reward function {self.target.label!r}:\n{value}")
            worker.ready = True
            return
        assert worker.index is not None
        if kind == "ok":
            outcomes[worker.index] = Outcome(value)
        elif kind == "gone":
            detail = f"the worker process ended with exit code {value} (negative: killed by that signal)"
            outcomes[worker.index] = Outcome(failure=Failure("died", detail))
        else:
            outcomes[worker.index] = Outcome(failure=Failure(kind, str(value)))
        worker.index = None
        if kind == "gone":
            self._drop(worker)

    def _late(self, worker: _Worker, outcomes: dict[int, Outcome], seconds: float) -> None:
        index = worker.index
        self._drop(worker)
        if index is None:
            raise RewardError(f"a worker needed more than {START_SECONDS:g} s to load {self.target.label!r}")
        outcomes[index] = Outcome(failure=Failure("timeout", f"no answer after {seconds:g} s of wall-clock time"))

    def _drop(self, worker: _Worker) -> None:
        worker.kill()
        self._workers.remove(worker)

    def close(self) -> None:
        """Kill all workers. The pool may be used again; it then starts new ones.

        A pool that another thread is using is left alone: its workers end with this process.
        """
        if not self._lock.acquire(timeout=1.0):
            return
        try:
            for worker in list(self._workers):
                self._drop(worker)
        finally:
            self._lock.release()


_POOLS: dict[tuple[int, Target, int | None, int | None], WorkerPool] = {}
_POOLS_LOCK = threading.Lock()


def pool_for(target: Target, workers: int | None = None, memory_mb: int | None = None) -> WorkerPool:
    """The pool of this function in this process; equal requests share one. A forked child gets its own.

    Pools of the same function of a file as it was before it was edited are closed.
    """
    key = (os.getpid(), target, workers, memory_mb)
    with _POOLS_LOCK:
        if key not in _POOLS:
            for other in [k for k in _POOLS if k[0] == os.getpid() and _before_an_edit(k[1], target)]:
                _POOLS.pop(other).close()
            _POOLS[key] = WorkerPool(target, workers, memory_mb)
        return _POOLS[key]


def _before_an_edit(old: Target, new: Target) -> bool:
    return bool(new.path) and (old.path, old.name) == (new.path, new.name) and old.digest != new.digest


def close_pools() -> None:
    """Kill the workers of every pool this process made. Called at exit."""
    with _POOLS_LOCK:
        for key in [key for key in _POOLS if key[0] == os.getpid()]:
            _POOLS.pop(key).close()


atexit.register(close_pools)
