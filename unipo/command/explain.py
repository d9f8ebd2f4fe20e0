"""`unipo explain METHOD`: the formula that a run computes, with its settings, denominators and sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from unipo.command.flags import JSON, SET, parse, settings
from unipo.command.methods import PLUGIN, indented, remarks
from unipo.command.output import json_line, line, table
from unipo.errors import ConfigError
from unipo.method import Method
from unipo.registry import get_method, load_plugin

ABOUT = """The exact formula of a method, stage by stage, with every setting and denominator filled in.

examples:
  unipo explain dapo --max-tokens 4096
  unipo explain grpo --set objective.high=0.28 --set 'regularisers=[]'
  unipo explain cepo --json"""


@dataclass(frozen=True)
class Options:
    """ """

    method: Annotated[Positional[str], arg(help="a method of `unipo methods`")]
    set: Annotated[tuple[str, ...], UseAppendAction, SET] = ()
    max_tokens: Annotated[
        int, arg(help="longest response, which some methods divide by; 0 leaves it open", help_behavior_hint="")
    ] = 0
    plugin: Annotated[tuple[str, ...], UseAppendAction, PLUGIN] = ()
    json: Annotated[bool, FlagCreatePairsOff, JSON] = False


def run(argv: Sequence[str]) -> int:
    options = parse(Options, argv, "unipo explain", ABOUT)
    if options.max_tokens < 0:
        raise ConfigError(f"--max-tokens must be positive, got {options.max_tokens}")
    for path in options.plugin:
        load_plugin(path)
    method = get_method(options.method)
    if options.set:
        from unipo.training.setting import changed

        method = changed(method, settings(options.set))
    if options.max_tokens:
        method = method.bound_to(options.max_tokens)
    if options.json:
        json_line(record(method))
    else:
        line(text(method))
    return 0


def parts(method: Method) -> list[dict[str, Any]]:
    """Each part and signal: where it stands, what it is, its formula and source."""
    placed = [*method.parts, *(("signal", s) for s in method.signals)]
    return [
        {
            "field": name,
            "part": type(part).__name__,
            "settings": part.settings(),
            "formula": part.formula(),
            "source": part.source,
        }
        for name, part in placed
    ]


def record(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "formula": method.explain().splitlines(),
        "parts": parts(method),
        "needs": sorted(method.needs),
        "defaults": dict(method.defaults),
        "notes": list(method.notes),
        "doubts": list(method.doubts),
        "limits": list(method.limits),
    }


def text(method: Method) -> str:
    rows = [(p["field"], p["part"], p["source"] or "-") for p in parts(method)]
    blocks = [f"{method.name}: {method.summary}", indented(method.explain())]
    blocks.append("sources\n" + indented(table(rows, ("field", "part", "after"))))
    return "\n\n".join([*blocks, *remarks(method)])
