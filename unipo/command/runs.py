"""`unipo runs`: the runs there are, with their rewards as small curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from unipo.command.flags import JSON, parse
from unipo.command.output import json_line, line, table
from unipo.training.sparkline import sparkline
from unipo.view.reading import Run

ABOUT = """The runs in a directory: method, steps, reward over the run, held-out results, warnings; the newest last.

examples:
  unipo runs
  unipo runs experiments --json"""


@dataclass(frozen=True)
class Options:
    """ """

    root: Annotated[Positional[str], arg(help="directory of runs", metavar="[DIRECTORY]")] = "runs"
    json: Annotated[bool, FlagCreatePairsOff, JSON] = False


def run(argv: Sequence[str]) -> int:
    options = parse(Options, argv, "unipo runs", ABOUT)
    paths = sorted(Path(options.root).glob("*/config.yaml"), key=lambda p: p.stat().st_mtime)
    found = []
    for path in paths:
        here = Run(path.parent)
        here.refresh(0)  # its responses are not needed
        found.append((here, record(here)))
    if options.json:
        json_line([r for _, r in found])
    elif not found:
        line(f"no run in {options.root}/; start one with: unipo train")
    else:
        rows = [shown(here, r) for here, r in found]
        line(table(rows, ("run", "method", "steps", "state", "reward", "", "held-out", "warnings")))
    return 0


def record(here: Run) -> dict[str, Any]:
    rewards = [x for x in here.series.get("reward/mean", ()) if x is not None]
    config = here.config()
    return {
        "run": str(here.path),
        "method": str(config.get("method", "?")),
        "steps": here.steps,
        "of": config.get("steps"),
        "state": here.state(),
        "reward": {"first": rewards[0], "last": rewards[-1]} if rewards else None,
        "heldout": [{k: e.get(k) for k in ("step", "accuracy", "low", "high")} for e in here.evaluations],
        "warnings": [a["name"] for a in here.alarms()],
    }


def shown(here: Run, r: dict[str, Any]) -> list[str]:
    """One row of the table."""
    reward = r["reward"]
    held = [e["accuracy"] for e in r["heldout"] if e["accuracy"] is not None]
    return [
        here.name,
        r["method"],
        f"{r['steps']}/{r['of']}",
        r["state"],
        "-" if reward is None else f"{reward['first']:.2f} to {reward['last']:.2f}",
        sparkline(here.series.get("reward/mean", ())),
        "-" if not held else f"{held[0]:.3f}" if len(held) == 1 else f"{held[0]:.3f} to {held[-1]:.3f}",
        ", ".join(r["warnings"]) or "-",
    ]
