"""`unipo methods`: the catalogue, one method in full, or the methods grouped by one of their parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from unipo.axes import AXES
from unipo.command.flags import JSON, parse
from unipo.command.output import json_line, line, table
from unipo.errors import unknown
from unipo.method import PART_FIELDS as FIELDS
from unipo.method import Method, diff
from unipo.registry import catalogue, get_method, load_plugin

ABOUT = """What there is to train with, and which paper each method follows.

examples:
  unipo methods                  all of them
  unipo methods dapo             one in full: formula, what it changes, details, doubts
  unipo methods --by objective   grouped by the loss they share
  unipo methods --by axis        along the axes of a survey: data, feedback, optimisation, credit-unit, kl
  unipo methods --json"""

BY = f"group by a part ({', '.join(FIELDS)}), by an axis ({', '.join(AXES)}), or by every axis: axis"
PLUGIN = arg(help="Python file that registers methods of your own; may be given several times", help_behavior_hint="")


@dataclass(frozen=True)
class Options:
    """ """

    name: Annotated[Positional[str], arg(help="one method, to see in full", metavar="[NAME]")] = ""
    by: Annotated[str, arg(help=BY, help_behavior_hint="")] = ""
    plugin: Annotated[tuple[str, ...], UseAppendAction, PLUGIN] = ()
    json: Annotated[bool, FlagCreatePairsOff, JSON] = False


def run(argv: Sequence[str]) -> int:
    options = parse(Options, argv, "unipo methods", ABOUT)
    for path in options.plugin:
        load_plugin(path)
    if options.by not in ("", "axis", *FIELDS, *AXES):
        raise unknown("part or axis of a method", options.by, ("axis", *FIELDS, *AXES))
    if options.name:
        method = get_method(options.name)
        if options.json:
            json_line({**record(method), **details(method)})
        else:
            line(in_full(method))
        return 0
    chosen = list(catalogue().values())
    if options.json:
        json_line([record(m) for m in chosen])
    elif options.by:
        fields = AXES if options.by == "axis" else (options.by,)
        line("\n\n".join(grouped(chosen, field) for field in fields))
    else:
        rows = [(m.name, m.parent or "", m.paper.arxiv, m.summary, m.paper.title) for m in chosen]
        line(table(rows, ("name", "grown from", "arXiv", "summary", "paper")))
    return 0


def part_names(method: Method) -> dict[str, list[str]]:
    """Names of the parts by field, in the order they run."""
    found: dict[str, list[str]] = {}
    for name, part in method.parts:
        found.setdefault(name, []).append(type(part).__name__)
    return found


def record(method: Method) -> dict[str, Any]:
    """A method as `unipo methods --json` lists it."""
    return {
        "name": method.name,
        "aliases": list(method.aliases),
        "paper": method.paper.title,
        "arxiv": method.paper.arxiv,
        "code": method.paper.code,
        "parent": method.parent,
        "summary": method.summary,
        "axes": {name: place(method) for name, place in AXES.items()},
        "parts": part_names(method),
    }


def details(method: Method) -> dict[str, Any]:
    """What `unipo methods NAME --json` adds."""
    return {
        "formula": method.explain().splitlines(),
        "changes": [{"path": c.path, "before": c.before, "after": c.after} for c in changes(method)],
        "defaults": dict(method.defaults),
        "notes": list(method.notes),
        "doubts": list(method.doubts),
        "limits": list(method.limits),
    }


def changes(method: Method) -> list[Any]:
    """What the method changes in its parent; nothing without one."""
    return diff(get_method(method.parent), method) if method.parent else []


def in_full(method: Method) -> str:
    """Everything the catalogue knows of a method, for reading."""
    title = method.name + (f" (also {', '.join(method.aliases)})" if method.aliases else "")
    where = [f"https://arxiv.org/abs/{method.paper.arxiv}"] if method.paper.arxiv else []
    where += [f"code followed: {method.paper.code}"] if method.paper.code else []
    blocks = [f"{title}\n{method.summary}\n\n{method.paper.title}\n{'   '.join(where)}".rstrip()]
    blocks.append("\n".join(["formula", *(f"  {text}" for text in method.explain().splitlines())]))
    rows = [(c.path, show(c.before), show(c.after)) for c in changes(method)]
    if rows:
        blocks.append(
            f"changes to {method.parent}\n" + indented(table(rows, ("part", method.parent or "", method.name)))
        )
    blocks += remarks(method)
    return "\n\n".join(blocks)


def remarks(method: Method) -> list[str]:
    """Recommended settings, numbered details, doubts and limits, as blocks of text."""
    blocks = []
    if method.defaults:
        rows = [(k, str(v)) for k, v in method.defaults.items()]
        blocks.append("recommended\n" + indented(table(rows, ("setting", "value"))))
    for title, items in (("details", method.notes), ("doubts", method.doubts), ("limits", method.limits)):
        if items:
            texts = [fill(t, 116, initial_indent=f"  {i}. ", subsequent_indent="     ") for i, t in enumerate(items, 1)]
            blocks.append("\n".join([title, *texts]))
    return blocks


def grouped(chosen: Sequence[Method], field: str) -> str:
    """The methods by where they stand on an axis, or by the parts they have in one field."""
    groups: dict[str, list[str]] = {}
    for method in chosen:
        place = AXES[field](method) if field in AXES else " + ".join(part_names(method).get(field, [])) or "(none)"
        groups.setdefault(place, []).append(method.name)
    return table([(parts, ", ".join(names)) for parts, names in groups.items()], (field, "methods"))


def show(value: Any) -> str:
    """A setting as a table shows it; () for no parts, - for nothing."""
    if value is None:
        return "-"
    return ", ".join(map(repr, value)) or "()" if isinstance(value, tuple) else repr(value)


def indented(text: str) -> str:
    return "\n".join(f"  {row}" for row in text.splitlines())
