"""`unipo show RUN`: responses of a run in the terminal, their tokens coloured by a column."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from rich.console import Console
from rich.style import Style
from rich.text import Text
from tyro.conf import FlagCreatePairsOff, Positional, arg

from unipo.command.flags import JSON, parse
from unipo.command.output import json_line, line
from unipo.errors import ConfigError, unknown
from unipo.view.reading import Run, find_runs
from unipo.view.shade import shades

ABOUT = """Responses of a run: their prompts, rewards and texts, tokens coloured where they were recorded.

examples:
  unipo show runs/mine                             the best and the worst of the last step
  unipo show runs/mine --step 40 --worst 5
  unipo show runs/mine --worst 3 --by length --colour behaviour_entropy
  unipo show runs/mine --step 40 --json"""

ORDERS = ("reward", "length", "advantage")


@dataclass(frozen=True)
class Options:
    """ """

    run: Annotated[
        Positional[str],
        arg(help="a run directory; the newest below runs/ if not given", metavar="[RUN]", help_behavior_hint=""),
    ] = ""
    step: Annotated[int, arg(help="step; the last one with responses if not given", help_behavior_hint="")] = 0
    all: Annotated[
        bool, FlagCreatePairsOff, arg(help="choose among the responses of all steps", help_behavior_hint="")
    ] = False
    worst: Annotated[int, arg(help="so many from the lower end", help_behavior_hint="")] = 0
    best: Annotated[int, arg(help="so many from the upper end", help_behavior_hint="")] = 0
    by: Annotated[str, arg(help=f"what orders them: {', '.join(ORDERS)}", help_behavior_hint="(default: reward)")] = (
        "reward"
    )
    colour: Annotated[str, arg(help="token column", help_behavior_hint="(default: advantage)")] = "advantage"
    json: Annotated[bool, FlagCreatePairsOff, JSON] = False


def run(argv: Sequence[str]) -> int:
    options = parse(Options, argv, "unipo show", ABOUT)
    if options.by not in ORDERS:
        raise unknown("order", options.by, ORDERS)
    if min(options.step, options.worst, options.best) < 0:
        raise ConfigError("--step, --worst and --best cannot be negative")
    paths = find_runs([options.run] if options.run else [])
    if len(paths) > 1:
        raise ConfigError(f"{options.run} holds {len(paths)} runs; name one of them, e.g. {paths[-1]}")
    here = Run(paths[0])
    here.refresh()
    numbers = chosen(here, options)
    if options.json:
        json_line([summary(here, i) | here.detail(i) for i in numbers])
        return 0
    console = Console(file=sys.stdout, highlight=False)
    for i in numbers:
        show(console, here, i, options.colour)
    if not numbers:
        line(f"{here.name}: no response was written down")
    return 0


def chosen(here: Run, options: Options) -> list[int]:
    """Numbers of the responses asked for, the worst first. Raises ConfigError for a step without any."""
    steps = here.rows["step"]
    step = options.step or (steps[-1] if steps else 0)
    if not options.all and options.step and step not in steps:
        raise ConfigError(f"step {step} has no written response; {here.name} has steps {steps[:1]} to {steps[-1:]}")
    values = here.rows[options.by]
    among = [i for i, s in enumerate(steps) if (options.all or s == step) and values[i] is not None]
    if not among:  # without rewards, in the order they came
        return [i for i, s in enumerate(steps) if options.all or s == step][: options.worst or options.best or 2]
    worst, best = options.worst, options.best
    if not worst and not best:
        worst = best = 1
    traced = here.rows["traced"]  # of equal ones, those whose tokens were recorded
    low = sorted(among, key=lambda i: (values[i], -traced[i], i))[:worst]
    high = sorted(among, key=lambda i: (-values[i], -traced[i], i))[:best]
    return low + [i for i in reversed(high) if i not in low]


def summary(here: Run, i: int) -> dict[str, Any]:
    return {name: here.rows[name][i] for name in ("step", "row", "length", "traced")}


def show(console: Console, here: Run, i: int, column: str) -> None:
    """One response. Text of models and data sets is printed as text: no markup, no control characters."""
    detail, rows = here.detail(i), here.rows
    facts = [f"step {rows['step'][i]}", f"reward {_number(rows['reward'][i])}"]
    facts += [f"advantage {_number(rows['advantage'][i])}", f"{rows['length'][i]} tokens"]
    facts += ["truncated"] if rows["truncated"][i] else []
    console.rule(Text("  ".join(facts)), align="left", style="dim")
    console.print(Text(harmless(str(detail.get("prompt") or "")), style="dim"))
    if "pieces" in detail:
        console.print(coloured(detail, column, here))
    else:
        console.print(Text(harmless(str(detail.get("text") or ""))))
    if detail.get("answer") is not None:
        console.print(Text(f"expected: {harmless(str(detail['answer']))}", style="dim"))


def coloured(detail: dict[str, Any], column: str, here: Run) -> Text:
    """The tokens on a background by the column; tool text underlined."""
    columns = detail["columns"]
    if column not in columns:
        raise unknown(f"token column of {here.name}", column, columns)
    text = Text()
    trainable = columns.get("trainable") or [1] * len(detail["pieces"])
    for piece, (kind, share), own in zip(detail["pieces"], shades(column, columns[column]), trainable, strict=True):
        red, green, blue = (round(40 + share * (x - 40)) for x in _COLOURS[kind])
        back = f"rgb({red},{green},{blue})" if share >= 0.05 else None
        text.append(harmless(piece), Style(color="white" if back else None, bgcolor=back, underline=own == 0))
    return text


# Dark enough for white letters at full strength.
_COLOURS = {"plus": (150, 80, 15), "minus": (32, 85, 155), "amount": (29, 107, 80), "none": (40, 40, 40)}


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.3g}"


def harmless(text: str) -> str:
    """Without characters that a terminal would obey instead of print; newlines and tabs stay."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)
