"""`unipo reproduce SLUG`: a paper's claim against its own baseline, with a verdict by a stated rule."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from unipo.command.flags import JSON, parse
from unipo.command.output import json_line, line, note, results_only, table
from unipo.compare.code import mixed
from unipo.compare.figure import require
from unipo.errors import ConfigError
from unipo.reproduce.claim import Metric, Reproduction
from unipo.reproduce.run import keep, picture, reproduce
from unipo.reproduce.shelf import find, listing, load, result_path, shelf
from unipo.rewards.isolation import available_processors

ABOUT = """Test a paper's claim: the system against its own baseline, on equal budgets, from the same weights, over seeds.

Every file of reproductions/ states one claim, the arms, task, budget, metrics and search (the same grid for each arm).
The verdict follows from the paired difference of the first metric over seeds and its 95 % interval: 'shown', 'not
shown at this scale', or 'reversed'. It is written to reproductions/results/ (of a file of your own: to
results/ beside it) with every seed's curve and a picture. The same command goes on where it was stopped.

examples:
  unipo reproduce --list
  unipo reproduce cepo
  unipo reproduce cepo --quick      proves that it runs; its numbers mean nothing, and nothing is kept
  unipo reproduce mine.py --json"""


@dataclass(frozen=True)
class Options:
    """ """

    slug: Annotated[Positional[str], arg(help="a reproduction, or a file that states one", metavar="[SLUG]")] = ""
    list: Annotated[
        bool, FlagCreatePairsOff, arg(help="all reproductions and their verdicts", help_behavior_hint="")
    ] = False
    quick: Annotated[bool, FlagCreatePairsOff, arg(help="two steps, two seeds, no result", help_behavior_hint="")] = (
        False
    )
    jobs: Annotated[int, arg(help="runs at a time; 0: as many as cores", help_behavior_hint="")] = 0
    out: Annotated[
        str, arg(help="directory of the runs; runs/reproduce-SLUG if not given", metavar="TEXT", help_behavior_hint="")
    ] = ""
    json: Annotated[bool, FlagCreatePairsOff, JSON] = False


def run(argv: Sequence[str]) -> int:
    options = parse(Options, argv, "unipo reproduce", ABOUT)
    if options.list:
        rows = listing(shelf())
        if options.json:
            json_line(rows)
        else:
            line(listed(rows))
        return 0
    if not options.slug:
        raise ConfigError("which claim? unipo reproduce --list shows all")
    file = find(options.slug)
    stated = load(file)
    with results_only(options.json):
        record, place = quickly(stated, file, options) if options.quick else fully(stated, file, options)
    if options.json:
        json_line({**record, "quick": options.quick, "result": place})
    else:
        line(text(record, stated, place))
    return 0


def fully(stated: Reproduction, file: Path, options: Options) -> tuple[dict[str, Any], str]:
    """Run all of it and keep the result."""
    require()
    if stated.seeds < 5:
        raise ConfigError(f"{file} asks for {stated.seeds} seeds; a result that is kept needs five or more")
    folder = Path(options.out or f"runs/reproduce-{file.stem}")
    record, outcomes = reproduce(stated, file, folder, options.jobs or available_processors(), note)
    keep(record, outcomes, result_path(file))
    return record, str(result_path(file))


def quickly(stated: Reproduction, file: Path, options: Options) -> tuple[dict[str, Any], str]:
    """Run the smallest piece of it, and leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="unipo-quick-") as name:
        folder = Path(name)
        record, outcomes = reproduce(stated.quick(), file, folder, options.jobs or 1, note)
        if importlib.util.find_spec("matplotlib") is not None:
            picture(record, outcomes, folder / "picture.png")
        else:
            note("no picture was tried: that needs matplotlib, of unipo[plots]")
    return {**record, "verdict": None}, ""


def text(record: Mapping[str, Any], stated: Reproduction, place: str) -> str:
    """The outcome for people."""
    blocks = [f"{record['slug']}: {record['claim']}"]
    blocks += [_metric(row, metric, stated) for row, metric in zip(record["metrics"], stated.metrics, strict=True)]
    chosen = record["search"]["chosen"]
    if chosen:
        told = "; ".join(f"{arm}: {', '.join(f'{k} {v}' for k, v in s.items())}" for arm, s in chosen.items())
        blocks.append(f"chosen by the search: {told}")
    if record["verdict"] is None:
        blocks.append("It runs. With two steps and two seeds these numbers mean nothing, and nothing was kept.")
    else:
        of = ", ".join(s for s in (f"{len(record['seeds'])} seeds", mixed(record["code"])) if s)
        blocks.append(f"verdict: {record['verdict']} ({of})\n{place}")
    return "\n\n".join(blocks)


def _metric(row: Mapping[str, Any], metric: Metric, stated: Reproduction) -> str:
    gaps = row["differences"]
    rows = [(n, metric.interval(v), metric.interval(gaps[n]) if n in gaps else "") for n, v in row["arms"].items()]
    wanted = "higher" if metric.higher else "lower"
    title = f"{metric.what} (claimed: {wanted} for {stated.system})"
    return f"{title}\n{table(rows, ('', 'mean over seeds', f'{stated.system} minus this'))}"


def listed(rows: Sequence[Mapping[str, Any]]) -> str:
    """The list for people."""
    verdicts = [
        (r["verdict"] or "not run") + (" (of an older statement)" if r["current"] is False else "") for r in rows
    ]
    cells = [
        (r["slug"], said, r["date"] or "", str(r["seeds"]), r["claim"]) for r, said in zip(rows, verdicts, strict=True)
    ]
    return table(cells, ("slug", "verdict", "date", "seeds", "claim"))
