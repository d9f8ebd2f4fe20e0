"""Which modules are public, what in them has no docstring, and a page for each."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import unipo

# Not for import: the command's own modules, the page's server, scripts that make the shipped models, extras' bindings
# (documented by the protocol they follow), and the catalogue, whose members have pages of their own.
APART = (
    *("unipo.__main__", "unipo.cli", "unipo.command", "unipo.docs", "unipo.methods", "unipo.starter", "unipo.view"),
    *("unipo.track.mlflow", "unipo.track.tensorboard", "unipo.track.trackio", "unipo.track.wandb"),
)


def modules() -> list[str]:
    """Every public module, by name."""
    found = [m.name for m in pkgutil.walk_packages(unipo.__path__, "unipo.", onerror=_raise)]
    return sorted(n for n in found if not any(n == a or n.startswith(f"{a}.") for a in APART))


def _raise(name: str) -> None:
    raise ImportError(f"{name} could not be imported")


def defined(module: ModuleType) -> dict[str, Any]:
    """The public classes and functions that a module defines."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    }


def undocumented(name: str) -> list[str]:
    """What a module leaves unexplained: itself, its classes and functions, their methods and properties.

    A method may inherit its docstring. The signature that a dataclass is given as docstring counts as none.
    """
    module = importlib.import_module(name)
    bare = [] if (module.__doc__ or "").strip() else [name]
    for symbol, value in defined(module).items():
        text = (value.__doc__ or "").strip()
        if not text or text.startswith(f"{symbol}("):
            bare.append(f"{name}.{symbol}")
        if inspect.isclass(value):
            bare += [f"{name}.{symbol}.{m}" for m in _members(value) if not inspect.getdoc(getattr(value, m))]
    return bare


def _members(kind: type[Any]) -> Iterator[str]:
    for name, value in vars(kind).items():
        function: Callable[..., Any] | None = value.fget if isinstance(value, property) else value
        function = getattr(function, "__func__", function)
        # What `dataclass` makes comes from no file.
        if not name.startswith("_") and inspect.isfunction(function) and function.__module__ == kind.__module__:
            yield name


def page(name: str) -> str:
    """The Markdown of a module's page; the docstrings are filled in by mkdocstrings. A search finds guides first."""
    return f"---\nsearch:\n  boost: 0.2\n---\n\n# {name}\n\n::: {name}\n"


def address(name: str) -> str:
    """Where in the site the page of a module lies."""
    return f"python/{name}.md"


def tree() -> list[Any]:
    """The modules as the site's navigation lists them: single ones first, then the rooms."""
    rooms: dict[str, list[Any]] = {}
    single: list[Any] = []
    for name in modules():
        room, _, rest = name.removeprefix("unipo.").partition(".")
        if rest:
            rooms.setdefault(room, []).append({rest: address(name)})
        elif hasattr(importlib.import_module(name), "__path__"):
            rooms.setdefault(room, []).insert(0, {room: address(name)})
        else:
            single.append({room: address(name)})
    return [{"unipo": single}, *({room: pages} for room, pages in rooms.items())]
