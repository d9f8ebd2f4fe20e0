"""Any Python function as a reward: an object, or "path/to/file.py:function"."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unipo.errors import ConfigError, RewardError, unknown
from unipo.rewards.isolation import FILE_MODULE_PREFIX, Target, file_target, pool_for, target_of
from unipo.rewards.policy import (
    Failure,
    OnError,
    Outcome,
    check_on_error,
    check_positive,
    describe,
    failure_error,
    leaf_scores,
    settle,
)
from unipo.rewards.signature import Signature, read_signature
from unipo.rewards.worker import NotPlainError, load_source, plain
from unipo.tasks.task import Sample, Scores


def load_object(spec: str) -> Any:
    """The object named by "path/to/file.py:name" or "package.module:name".

    The file is imported, which runs its top level.  Raises ConfigError for a missing file or name (with the
    nearest one there is) and for a file that raises while it is imported.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise ConfigError(f"{spec!r} does not name a function: write path/to/file.py:function")
    module = _load_path(where) if where.endswith(".py") else _load_module(where)
    if not hasattr(module, name):
        raise unknown(f"name in {where}", name, [key for key in vars(module) if not key.startswith("_")])
    return getattr(module, name)


def _load_path(where: str) -> Any:
    path = Path(where).expanduser().resolve()
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f" (looked for {path})"
        raise ConfigError(f"reward file {where!r} does not exist{hint}")
    module_name = f"{FILE_MODULE_PREFIX}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    try:
        return load_source(path.read_bytes(), str(path), module_name, True)
    except Exception as error:
        raise ConfigError(f"reward file {where!r} cannot be imported:\n{traceback.format_exc()}") from error


def _load_module(where: str) -> Any:
    try:
        return importlib.import_module(where)
    except Exception as error:
        raise ConfigError(f"module {where!r} of a reward cannot be imported:\n{traceback.format_exc()}") from error


def load_function(spec: str) -> Callable[..., Any]:
    """As `load_object`, for something that can be called."""
    found = load_object(spec)
    if not callable(found):
        raise ConfigError(f"{spec!r} is a {type(found).__name__}, not a function")
    function: Callable[..., Any] = found
    return function


def _function_name(function: Callable[..., Any]) -> str:
    name = str(getattr(function, "__name__", type(function).__name__))
    return "lambda" if name == "<lambda>" else name


def _target(given: Callable[..., Any] | str, function: Callable[..., Any]) -> Target:
    if isinstance(given, str):
        where, _, name = given.rpartition(":")
        if where.endswith(".py"):
            return file_target(Path(where).expanduser(), name)
    return target_of(function)


def _run_here(function: Callable[..., Any], calls: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """Call the function in this process: exceptions become failures, nothing stops a call that hangs."""
    outcomes = []
    for call in calls:
        try:
            outcomes.append(Outcome(plain(function(**call))))
        except NotPlainError as error:
            outcomes.append(Outcome(failure=Failure("not_number", str(error))))
        except (Exception, SystemExit):
            outcomes.append(Outcome(failure=Failure("raised", traceback.format_exc())))
    return outcomes


@dataclass(frozen=True)
class FunctionReward:
    """A Python function as a reward; `unipo.rewards.signature` says how it is called.

    function: the function, or "path/to/file.py:function".  It returns a number or bool per sample, or None
    where it cannot judge (allow_none), which is counted as "abstained".
    isolate: run it in worker processes under a deadline of `seconds` per sample; a batch function has
    seconds * samples for the whole batch, and loses the whole batch when it hangs.  isolate=False runs it
    here: faster for trivial functions, sees this process's state, cannot be stopped.
    workers: processes, default one per processor up to 8; a batch function uses one.
    on_error: "stop" or "skip", see `unipo.rewards.policy`; a list of the wrong length is always an error,
    since its numbers cannot be attributed.
    Raises ConfigError, before anything runs, for a function that cannot be loaded, called or isolated.
    """

    function: Callable[..., Any] | str
    name: str = ""
    isolate: bool = True
    seconds: float = 10.0
    workers: int | None = None
    on_error: OnError = "stop"
    allow_none: bool = True
    _call: Callable[..., Any] = field(init=False, repr=False, compare=False)
    _signature: Signature = field(init=False, repr=False, compare=False)
    _target: Target | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        function = load_function(self.function) if isinstance(self.function, str) else self.function
        if not callable(function):
            raise ConfigError(f"a reward function must be callable or 'file.py:function', got {function!r}")
        name = self.name or _function_name(function)
        check_on_error(self.on_error)
        check_positive(f"reward {name!r}", seconds=self.seconds, workers=1 if self.workers is None else self.workers)
        for key, value in (
            ("name", name),
            ("_call", function),
            ("_signature", read_signature(function)),
            ("_target", _target(self.function, function) if self.isolate else None),
        ):
            object.__setattr__(self, key, value)

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        if not samples:
            return leaf_scores(self.name, [])
        outcomes = self._batch(samples) if self._signature.batch else self._each(samples)
        values, events = settle(self.name, outcomes, samples, on_error=self.on_error, allow_none=self.allow_none)
        return leaf_scores(self.name, values, events=events)

    def _run(self, calls: Sequence[Mapping[str, Any]], seconds: float) -> list[Outcome]:
        if self._target is None:
            return _run_here(self._call, calls)
        workers = 1 if self._signature.batch else self.workers
        return pool_for(self._target, workers).run(calls, seconds)

    def _each(self, samples: Sequence[Sample]) -> list[Outcome]:
        return self._run([self._signature.arguments(sample, self.name) for sample in samples], self.seconds)

    def _batch(self, samples: Sequence[Sample]) -> list[Outcome]:
        columns = self._signature.columns(samples, self.name)
        (outcome,) = self._run([columns], self.seconds * len(samples))
        if outcome.failure is not None:
            if self.on_error == "stop":
                raise failure_error(self.name, outcome.failure, None, samples)
            return [outcome] * len(samples)
        returned = outcome.value
        if not isinstance(returned, list) or len(returned) != len(samples):
            seen = f"{len(returned)} values" if isinstance(returned, list) else f"a {type(returned).__name__}"
            raise RewardError(
                f"reward {self.name!r} returned {seen} for {len(samples)} samples; a batch function must return a list "
                f"with one entry per sample, in order. The first sample:\n{describe(samples[0])}"
            )
        return [Outcome(value) for value in returned]
