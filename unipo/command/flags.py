"""Command-line options from typed dataclasses, through tyro, with errors that name the nearest option."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import field, fields, is_dataclass, make_dataclass
from types import NoneType
from typing import Annotated, Any, TypeVar

import tyro
import yaml
from tyro.conf import UseAppendAction, arg

from unipo.errors import ConfigError

T = TypeVar("T")


def parse(kind: type[T], argv: Sequence[str], prog: str, description: str) -> T:
    """An instance of the dataclass from arguments. --help prints and exits; unknown options are ConfigErrors."""
    made, left = tyro.cli(kind, args=list(argv), prog=prog, description=description, return_unknown_args=True)
    if left:
        raise ConfigError(_left_over(left, option_names(kind), prog))
    return made


def option_names(kind: type[Any], prefix: str = "") -> list[str]:
    """Every option of the dataclass as it is written, e.g. --optim.learning-rate."""
    names: list[str] = []
    plain, full = typing.get_type_hints(kind), typing.get_type_hints(kind, include_extras=True)
    for f in fields(kind):
        own = [m.name for m in getattr(full[f.name], "__metadata__", ()) if getattr(m, "name", None)]
        path = f"{prefix}{own[0] if own else f.name}"
        if is_dataclass(plain[f.name]):
            names += option_names(plain[f.name], f"{path}.")
        else:
            names.append(f"--{path.replace('_', '-')}")
    return names


def _left_over(left: Sequence[str], known: Sequence[str], prog: str) -> str:
    given = left[0].partition("=")[0]
    if not given.startswith("-"):
        return f"cannot place {left[0]!r}: see {prog} --help"
    wanted = given.replace("_", "-")
    if wanted.startswith("--no-") and f"--{wanted[5:]}" in known:  # a switch is negated inside its section
        section, dot, name = wanted[5:].rpartition(".")
        return f"unknown option {given}; did you mean --{section}{dot}no-{name}?"
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
    # The right name in a wrong section, or in none, is nearer than any spelling distance says.
    ends = [k for k in known if _last(k) == _last(wanted)]
    near = ends or close
    return f"unknown option {given}{f'; did you mean {near[0]}?' if near else ''} (see {prog} --help)"


def _last(option: str) -> str:
    return option.lstrip("-").rpartition(".")[2]


def with_defaults(kind: type[Any], default: Any, help_text: Mapping[str, str], hidden: Sequence[str] = ()) -> Any:
    """A dataclass like `kind` whose defaults are the values of `default` and whose fields carry their help.

    help_text: dotted path -> text, for every field.  hidden: paths that get no option.
    """
    return _mirror(kind, default, help_text, frozenset(hidden), "")


def _mirror(kind: Any, default: Any, help_text: Mapping[str, str], hidden: frozenset[str], prefix: str) -> Any:
    members: list[Any] = []
    hints = typing.get_type_hints(kind)
    for f in fields(kind):
        path, value, hint = f"{prefix}{f.name}", getattr(default, f.name), hints[f.name]
        if path in hidden:
            continue
        if is_dataclass(hint):
            inner = _mirror(hint, value, help_text, hidden, f"{path}.")
            members.append((f.name, inner, field(default_factory=inner)))
        else:
            members.append((f.name, annotated(hint, help_text.get(path, ""), value), field(default=value)))
    return make_dataclass(kind.__name__, members, frozen=True, namespace={"__doc__": help_text.get(prefix, " ")})


def annotated(hint: Any, text: str, value: Any = None) -> Any:
    """The type with its help; `float | None` is shown as FLOAT, and an absent default is not shown."""
    marks: list[Any] = []
    plain = [a for a in typing.get_args(hint) if a is not NoneType] if NoneType in typing.get_args(hint) else []
    if typing.get_origin(hint) is tuple:
        marks.append(UseAppendAction)
    shown = "" if value is None or value == "" or value == () else _default(value)
    settings: dict[str, Any] = {"help": text, "help_behavior_hint": shown}
    if plain:
        settings["metavar"] = {"str": "TEXT", "int": "INT", "float": "FLOAT"}.get(plain[0].__name__, "VALUE")
    return Annotated[(hint, *marks, arg(**settings))]  # type: ignore[misc]


def _default(value: Any) -> str:
    return f"(default: {'yes' if value is True else 'no' if value is False else value})"


def settings(texts: Sequence[str]) -> dict[str, Any]:
    """["objective.high=0.28"] -> {"objective.high": 0.28}; values are read as YAML."""
    found: dict[str, Any] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"--set takes PATH=VALUE, e.g. objective.high=0.28; got {text!r}")
        try:
            found[path.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            found[path.strip()] = value.strip()  # a part with several settings, which YAML cannot read
    return found


SET = arg(
    metavar="PATH=VALUE",
    help="change a part of the method, e.g. objective.high=0.28 (see unipo explain); may be given several times",
    help_behavior_hint="",
)
JSON = arg(help="print JSON", help_behavior_hint="")
