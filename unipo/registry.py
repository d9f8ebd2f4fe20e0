"""The catalogue by name, and the door for a user's own methods."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from unipo.errors import ConfigError, unknown
from unipo.method import Method

_METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method to the catalogue under its name and aliases, and return it."""
    for name in (method.name, *method.aliases):
        holder = next((m for m in _METHODS.values() if name in (m.name, *m.aliases)), None)
        if holder is not None and holder != method:
            raise ConfigError(f"a method called {name!r} exists already ({holder.paper.title}); choose another name")
    if method.parent is not None and method.parent not in _METHODS:
        raise unknown(f"parent of {method.name!r},", method.parent, _METHODS)
    _METHODS[method.name] = method
    return method


def catalogue() -> dict[str, Method]:
    """All registered methods by name, in order of registration."""
    import unipo.methods  # noqa: F401  (importing the catalogue registers it)

    return dict(_METHODS)


def get_method(name: str) -> Method:
    """A method by name or alias; an unknown name is an error with the nearest one."""
    known = catalogue()
    for method in known.values():
        if name in (method.name, *method.aliases):
            return method
    raise unknown("method", name, [n for m in known.values() for n in (m.name, *m.aliases)])


def load_plugin(path: str | Path) -> None:
    """Run a Python file that registers methods, tasks or trackers (`--plugin mine.py`)."""
    import unipo.methods  # noqa: F401

    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"plugin {str(path)!r} is not a file")
    name = f"unipo_plugin_{file.stem}"
    held = sys.modules.get(name)
    if held is not None and Path(str(held.__file__)).resolve() == file.resolve():
        return  # running it again would define its parts a second time
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"plugin {str(path)!r} is not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
