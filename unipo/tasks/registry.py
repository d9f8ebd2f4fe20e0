"""Tasks by name: "countdown", "reasoning-gym:chain_sum?min_terms=2", or the path of a data file."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from unipo.errors import ConfigError, unknown
from unipo.tasks.data import is_hub_id, looks_like_file
from unipo.tasks.dataset import Heldout, dataset_task
from unipo.tasks.fields import Fields
from unipo.tasks.reasoning import PREFIX, reasoning_task
from unipo.tasks.task import Task

Factory = Callable[..., Task]

# Named by place, not imported: a task's module is loaded when the task is asked for.
_TASKS: dict[str, str | Factory] = {
    "arithmetic": "unipo.tasks.arithmetic:arithmetic_task",
    "countdown": "unipo.tasks.countdown:countdown_task",
    "mnns": "unipo.tasks.mnns:mnns_task",
    "scratchpad": "unipo.tasks.scratchpad:scratchpad_task",
    "shapes": "unipo.tasks.shapes:shapes_task",
}
_NESTED: dict[str, type[Any]] = {"fields": Fields, "heldout": Heldout}


def register_task(name: str, factory: str | Factory) -> None:
    """Add a task under a name. factory: a function of keyword options that returns a Task, or "module:function"."""
    if name in _TASKS:
        raise ConfigError(f"a task named {name!r} exists already")
    if any(mark in name for mark in ":?/"):
        raise ConfigError(f"the name of a task holds none of ':', '?' and '/', got {name!r}")
    _TASKS[name] = factory


def resolve_task(spec: str | Path | Task, options: Mapping[str, Any] | None = None, **more: Any) -> Task:
    """The task a text names.

    spec: a registered name, "reasoning-gym:NAME", a data file, a dataset directory, a hub id "org/name", or a
        Task, which is returned as it is.  Options may follow after "?": "countdown?numbers=3&size=500", with
        values read as JSON where they are JSON and as text otherwise.
    options, more: the same options as values.  For data, `fields.prompt` and `heldout.size` (or mappings
        `fields` and `heldout`) reach into `Fields` and `Heldout`.
    Raises ConfigError: an unknown task or option (with the nearest), or an option given twice.
    """
    if not isinstance(spec, (str, Path)):
        if not isinstance(spec, Task):
            raise ConfigError(f"a task is a name, a path or an object with train, heldout and reward, got {spec!r}")
        if options or more:
            raise ConfigError(
                f"options {sorted({*(options or {}), *more})} cannot change the task {spec.name!r} any more"
            )
        return spec
    text = str(spec)
    name, _, query = (text, "", "") if Path(text).exists() else text.partition("?")
    given = _merge(_parse_query(query, text), dict(options or {}), more)
    if name in _TASKS:
        factory = _load(name)
        return factory(**_checked(factory, given, f"task {name}"))
    if name.startswith(PREFIX):
        return reasoning_task(name.removeprefix(PREFIX), **given)
    if looks_like_file(name) or Path(name).is_dir() or is_hub_id(name):
        return dataset_task(name, **_checked(dataset_task, _nest(given), f"data {name}"))
    raise unknown("task", name, (*_TASKS, f"{PREFIX}NAME", "a path to data", "org/name on the hub"))


def _parse_query(query: str, spec: str) -> dict[str, Any]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise ConfigError(f"options of {spec!r} must be written ?name=value&name=value ({error})") from error
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ConfigError(f"option {key!r} stands twice in {spec!r}")
        found[key] = _value(value)
    return found


def _value(text: str) -> Any:
    """JSON where it is JSON (5, 0.5, true, null, [1, 2]), True, False and None as Python writes them, else text."""
    words = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _merge(*sources: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for source in sources:
        for key, value in source.items():
            if key in merged:
                raise ConfigError(f"option {key!r} is given twice: {merged[key]!r} and {value!r}")
            merged[key] = value
    return merged


def _load(name: str) -> Factory:
    entry = _TASKS[name]
    if not isinstance(entry, str):
        return entry
    module, _, function = entry.partition(":")
    loaded: Factory = getattr(import_module(module), function)
    return loaded


def _checked(factory: Factory, options: dict[str, Any], what: str) -> dict[str, Any]:
    parameters = inspect.signature(factory).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return options
    known = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for option in options:
        if option not in known:
            raise unknown(f"option of {what}", option, known)
    return options


def _nest(options: dict[str, Any]) -> dict[str, Any]:
    """Gather "fields.prompt" under "fields" and so on, and make the dataclasses."""
    flat = {k: v for k, v in options.items() if "." not in k and k not in _NESTED}
    for outer, cls in _NESTED.items():
        dotted = {k.partition(".")[2]: v for k, v in options.items() if k.startswith(f"{outer}.")}
        whole = options.get(outer)
        if isinstance(whole, cls):
            if dotted:
                raise ConfigError(f"{outer} is given as a whole and by {sorted(dotted)}")
            flat[outer] = whole
            continue
        if whole is not None and not isinstance(whole, Mapping):
            raise ConfigError(f"{outer} must be a mapping such as {{...}}, or dotted options, got {whole!r}")
        inner = _merge(whole or {}, dotted)
        for option in inner:
            if option not in cls.__dataclass_fields__:
                raise unknown(f"option of {outer}", option, cls.__dataclass_fields__)
        if inner:
            flat[outer] = cls(**inner)
    stray = [k for k in options if "." in k and k.partition(".")[0] not in _NESTED]
    if stray:
        raise unknown(
            "option", stray[0], [f"{outer}.{name}" for outer, c in _NESTED.items() for name in c.__dataclass_fields__]
        )
    return flat
