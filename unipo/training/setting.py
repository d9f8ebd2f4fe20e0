"""Settings of a method's parts as a user writes them: {"objective.high": 0.28, "average": "SequenceMean()"}.

A dotted path changes one setting of a part, and its value must be of that setting's type.  A field of the method by
itself, and a member of a list of parts ("shaping.0"), takes a part, written as in Python: "ReferenceKL(beta=0.01)",
or "[]" for none; only names of parts and plain values are understood, nothing is executed.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from unipo.errors import ConfigError, unknown
from unipo.method import Method, Term
from unipo.parts.average import Average
from unipo.parts.curriculum import Curriculum
from unipo.parts.guard import Guard
from unipo.parts.part import Advantage, Credit, Objective, Part, Regulariser, Selection, Shaping
from unipo.parts.source import Source
from unipo.parts.value import ValueLearning
from unipo.training.config import fitted

# Field -> (what it holds, whether it is a list).
COMPOSITION: dict[str, tuple[type[Any], bool]] = {
    "curriculum": (Curriculum, False),
    "source": (Source, False),
    "selection": (Selection, True),
    "shaping": (Shaping, True),
    "advantage": (Advantage, False),
    "credit": (Credit, True),
    "objective": (Objective, False),
    "average": (Average, False),
    "regularisers": (Regulariser, True),
    "extra": (Term, True),
    "value": (ValueLearning, False),
    "guard": (Guard, False),
}


def changed(method: Method, changes: Mapping[str, Any]) -> Method:
    """The method with these settings. Raises ConfigError: unknown paths (with the nearest), values of a wrong type."""
    values: dict[str, Any] = {}
    for path, value in changes.items():
        head, _, rest = path.partition(".")
        if head not in COMPOSITION:
            raise unknown("part of a method", head, COMPOSITION)
        if not rest:
            values[head] = _whole(head, value)
            continue
        base = values.get(head, getattr(method, head))
        if isinstance(base, tuple) and rest in _places(base):
            values[path] = _one(head, value, path)
            continue
        hint = _hint(base, rest.split("."), path)
        values[path] = read_part(value) if _is_part(hint) and isinstance(value, str) else fitted(hint, value, path)
    return method.but(**values) if values else method


def _whole(name: str, value: Any) -> Any:
    kind, many = COMPOSITION[name]
    items = [read_part(v) if isinstance(v, str) else v for v in (value if isinstance(value, list | tuple) else [value])]
    if len(items) == 1 and isinstance(items[0], tuple):  # written as one text: "(A(), B())"
        items = list(items[0])
    if name in ("advantage", "curriculum", "guard", "value") and items == [None]:
        return None
    for item in items:
        if not isinstance(item, kind):
            raise ConfigError(f"{name} takes {_article(kind)} such as {_some(kind)}; got {item!r}")
    return tuple(items) if many else _only(items, name, value)


def _one(name: str, value: Any, path: str) -> Any:
    """A part that takes the place of another in a list."""
    return _only(_whole(name, value), path, value)


def _only(items: Sequence[Any], path: str, value: Any) -> Any:
    if len(items) != 1:
        raise ConfigError(f"{path} takes exactly one part, got {value!r}")
    return items[0]


def _places(parts: tuple[Any, ...]) -> list[str]:
    """How the members of a list of parts are called."""
    return [*map(str, range(len(parts))), *(type(x).__name__ for x in parts)]


def _article(kind: type[Any]) -> str:
    name = kind.__name__.lower()
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _some(kind: type[Any]) -> str:
    names = sorted(n for n, c in part_classes().items() if issubclass(c, kind))
    return ", ".join(names) or kind.__name__


def _hint(base: Any, path: list[str], full: str) -> Any:
    """Type of the setting at a path below a part (or list of parts). Unknown names are left to `Method.but`."""
    if not path:
        return type(base)
    if isinstance(base, tuple):
        at = path[0]
        chosen = [x for i, x in enumerate(base) if at in (str(i), type(x).__name__)]
        if not base:
            raise ConfigError(f"{full!r}: this method has no {full.partition('.')[0]} to change")
        if not chosen:
            raise unknown(f"part in {full!r}", at, _places(base))
        return _hint(chosen[0], path[1:], full)
    if not is_dataclass(base):
        raise ConfigError(f"{full!r}: there is no part here to change (it is {base!r})")
    known = [f.name for f in fields(base)]
    if path[0] not in known:
        raise unknown(f"setting of {type(base).__name__}", path[0], known)
    if len(path) > 1:
        return _hint(getattr(base, path[0]), path[1:], full)
    return typing.get_type_hints(type(base))[path[0]]


def _is_part(hint: Any) -> bool:
    return any(isinstance(h, type) and issubclass(h, Part) for h in (hint, *typing.get_args(hint)))


def read_part(text: str) -> Any:
    """A part, tuple of parts or plain value from its text. Raises ConfigError for anything else."""
    try:
        return _build(ast.parse(text.strip(), mode="eval").body, text)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"cannot read {text!r} as a part; write e.g. SequenceMean() or Clipped(high=0.28)") from error


def _build(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_build(item, text) for item in node.elts)
    if isinstance(node, ast.Name):
        return _make(node.id, {})
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.args or any(k.arg is None for k in node.keywords):
            raise ConfigError(f"{text!r}: give settings by name, e.g. {node.func.id}(beta=0.04)")
        return _make(node.func.id, {str(k.arg): _build(k.value, text) for k in node.keywords})
    return ast.literal_eval(node)


def _make(name: str, settings: dict[str, Any]) -> Any:
    classes = part_classes()
    if name not in classes:
        raise unknown("part", name, classes)
    cls = classes[name]
    hints, known = typing.get_type_hints(cls), [f.name for f in fields(cls)]
    for key, value in settings.items():
        if key not in known:
            raise unknown(f"setting of {name}", key, known)
        if not isinstance(value, Part):
            settings[key] = fitted(hints[key], value, f"{name}.{key}")
    try:
        return cls(**settings)
    except TypeError as error:
        raise ConfigError(f"cannot make {name}: {error}") from error


def part_classes() -> dict[str, type[Any]]:
    """Every part by name, those of plugins included."""
    import unipo.parts

    for module in pkgutil.iter_modules(unipo.parts.__path__):
        importlib.import_module(f"unipo.parts.{module.name}")
    kinds = {k for k, _ in COMPOSITION.values()} - {ValueLearning}  # the one field with a single part to take
    found = {c.__name__: c for c in _below(Part) if c not in kinds}
    return {**found, "Term": Term}


def _below(cls: type[Any]) -> Iterator[type[Any]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _below(sub)
