"""`unipo diff A B`: what changes from one method to another, setting by setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from unipo.command.flags import JSON, parse
from unipo.command.methods import PLUGIN, show
from unipo.command.output import json_line, line, table
from unipo.method import diff
from unipo.registry import get_method, load_plugin

ABOUT = """What changes from one method to another, setting by setting.

examples:
  unipo diff grpo dapo
  unipo diff rlsd cepo --json
  unipo diff grpo mine --plugin my_method.py"""


@dataclass(frozen=True)
class Options:
    """ """

    before: Annotated[Positional[str], arg(help="a method")]
    after: Annotated[Positional[str], arg(help="another")]
    plugin: Annotated[tuple[str, ...], UseAppendAction, PLUGIN] = ()
    json: Annotated[bool, FlagCreatePairsOff, JSON] = False


def run(argv: Sequence[str]) -> int:
    options = parse(Options, argv, "unipo diff", ABOUT)
    for path in options.plugin:
        load_plugin(path)
    before, after = get_method(options.before), get_method(options.after)
    changes = diff(before, after)
    if options.json:
        json_line([{"path": c.path, "before": c.before, "after": c.after} for c in changes])
    elif not changes:
        line(f"{before.name} and {after.name} are the same composition")
    else:
        rows = [(c.path, show(c.before), show(c.after)) for c in changes]
        line(table(rows, ("part", before.name, after.name)))
    return 0
