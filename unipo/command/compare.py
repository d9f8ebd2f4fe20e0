"""`unipo compare A B ...`: methods on equal budgets over several seeds, as a table, a page and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from unipo.command.flags import JSON, parse, settings
from unipo.command.methods import PLUGIN
from unipo.command.output import json_line, line, note, results_only, table
from unipo.compare.figure import require
from unipo.compare.plan import Plan, default_folder
from unipo.compare.run import compare
from unipo.compare.spelling import parse_arm, parse_budget, plain_train
from unipo.compare.summary import heading, markdown, tables
from unipo.errors import ConfigError, unknown
from unipo.registry import catalogue, get_method, load_plugin
from unipo.rewards.isolation import available_processors
from unipo.training.config import fitted, merged, read_mapping
from unipo.training.shorthand import expand

ABOUT = """Compare methods on equal budgets: the same starting weights, the same evaluation prompts, several seeds.

An arm is a method, or a method with settings of its own: 'dapo[objective.high=0.3,lr=1e-4]' (quote the brackets).
The same command goes on where it was stopped, and repeats nothing that is finished; more arms, tasks and seeds may
be added to a directory, other settings are refused. Each run has one torch thread; --jobs says how many go at once.

It prints, for each task, the score at the end and the mean score over the budget with 95 % intervals, the chances that
one method beats another, and what each one cost; it writes comparison.json, .md and .png into its directory.

examples:
  unipo compare grpo dapo cepo
  unipo compare grpo 'dapo[selection=[]]' dapo --task countdown --model MODEL --seeds 5 --budget 200000 tokens
  unipo compare grpo cepo --data train.jsonl --reward maths --model MODEL --with data.heldout.size=200 --lr 1e-5
  unipo compare --all --task scratchpad --task 'scratchpad?kinds=["reverse"]' --page docs/comparison.md
  unipo compare --config reproductions/standing.yaml

A file of --config holds the same names: {arms: [grpo, dapo], tasks: {sums: scratchpad}, seeds: 5, budget: 100000 tokens,
train: {lr: 1e-4}}. Options override it."""

TEXT = {"metavar": "TEXT", "help_behavior_hint": ""}
NUMBER = {"metavar": "INT", "help_behavior_hint": ""}
# Names of a file that options have too, where they differ.
IN_FILE = (
    *("arms", "all", "without", "tasks", "seeds", "budget", "responses", "points", "out", "page", "note", "jobs"),
    *("keep", "train"),
)
DEFAULTS: dict[str, Any] = {"seeds": 5, "budget": "100000 tokens", "responses": 64, "points": 5, "jobs": 0}


@dataclass(frozen=True)
class Options:
    """ """

    arms: Annotated[
        Positional[tuple[str, ...]],
        arg(help="methods, with settings in brackets", metavar="ARM ...", help_behavior_hint=""),
    ] = ()
    all: Annotated[
        bool,
        FlagCreatePairsOff,
        arg(help="every method that samples tokens; those also named keep their settings", help_behavior_hint=""),
    ] = False
    without: Annotated[
        tuple[str, ...],
        UseAppendAction,
        arg(help="leave this one out of --all; may be repeated", metavar="METHOD", help_behavior_hint=""),
    ] = ()
    task: Annotated[tuple[str, ...], UseAppendAction, arg(help="a task or data file; may be repeated", **TEXT)] = ()
    data: Annotated[str, arg(help="file, dataset directory or hub id instead of a task", **TEXT)] = ""
    reward: Annotated[str, arg(help="how a response is scored, if the task has no reward of its own", **TEXT)] = ""
    model: Annotated[str, arg(help="directory or Hugging Face id; the shipped model if not given", **TEXT)] = ""
    seeds: Annotated[int | None, arg(help="runs of each method and task (default: 5)", **NUMBER)] = None
    budget: Annotated[
        tuple[str, str] | None,
        arg(
            metavar="N UNIT",
            help="of every run: tokens, steps or seconds (default: 100000 tokens)",
            help_behavior_hint="",
        ),
    ] = None
    responses: Annotated[
        int | None, arg(help="per step, for every method whatever its group (default: 64)", **NUMBER)
    ] = None
    points: Annotated[int | None, arg(help="evaluations between first and last (default: 5)", **NUMBER)] = None
    lr: Annotated[float | None, arg(help="learning rate of all arms", metavar="FLOAT", help_behavior_hint="")] = None
    max_tokens: Annotated[int, arg(help="longest response in tokens", help_behavior_hint="")] = 0
    with_: Annotated[
        tuple[str, ...],
        UseAppendAction,
        arg(name="with", metavar="KEY=VALUE", help="any setting of unipo train, for all runs", help_behavior_hint=""),
    ] = ()
    out: Annotated[str, arg(help="directory; one that is named after the settings if not given", **TEXT)] = ""
    page: Annotated[str, arg(help="also write the page here, its picture beside it", **TEXT)] = ""
    jobs: Annotated[int | None, arg(help="runs at a time; 0: as many as cores", **NUMBER)] = None
    keep: Annotated[bool, FlagCreatePairsOff, arg(help="keep the trained weights", help_behavior_hint="")] = False
    no_figure: Annotated[bool, FlagCreatePairsOff, arg(help="draw nothing", help_behavior_hint="")] = False
    config: Annotated[str, arg(help="YAML file with any of these settings", **TEXT)] = ""
    plugin: Annotated[tuple[str, ...], UseAppendAction, PLUGIN] = ()
    json: Annotated[bool, FlagCreatePairsOff, JSON] = False


@dataclass(frozen=True)
class Asked:
    """What is to be compared, and how. note: what the page says besides."""

    plan: Plan
    out: Path
    jobs: int
    page: str = ""
    figure: bool = True
    note: str = ""


def run(argv: Sequence[str]) -> int:
    """Compare as the arguments say. Returns 0, or 1 if a run failed."""
    options = parse(Options, argv, "unipo compare", ABOUT)
    asked = read(options)
    if asked.figure:
        require()
    note(f"{len(asked.plan.runs)} runs in {asked.out}; the same command goes on with them if this one is stopped")
    with results_only(options.json):
        found = compare(asked.plan, asked.out, asked.jobs, note, asked.figure)
        if asked.page:
            publish(asked, found)
    if options.json:
        json_line({**found, "out": str(asked.out)})
    else:
        line(text(found))
        line(f"\n{asked.out}/comparison.md")
    return 1 if found["failures"] else 0


def read(options: Options) -> Asked:
    """The plan that the options, and the file they name, ask for."""
    file = read_mapping(options.config) if options.config else {}
    for name in file:
        if name not in IN_FILE:
            raise unknown("key", f"{options.config}: {name}", [f"{options.config}: {n}" for n in IN_FILE])
    values = DEFAULTS | file
    given = {f.name: getattr(options, f.name) for f in fields(options)}
    values |= {n: v for n in ("seeds", "responses", "points", "budget", "jobs") if (v := given[n]) is not None}
    values |= {n: v for n in ("out", "page", "arms", "all", "without", "keep") if (v := given[n])}
    train = _train(options, values.get("train") or {})
    for path in train.get("plugin", ()):
        load_plugin(path)
    plan = Plan(
        arms=tuple(parse_arm(a) for a in _arms(values)),
        tasks=_tasks(options, values.get("tasks"), train),
        seeds=tuple(range(_count("seeds", values, 1))),
        budget=parse_budget(values["budget"]),
        responses=_count("responses", values, 1),
        points=_count("points", values, 0),
        train=train,
        keep=bool(values.get("keep")),
    )
    out = Path(values["out"]) if values.get("out") else default_folder(plan)
    page, told = str(values.get("page") or ""), str(values.get("note") or "")
    return Asked(plan, out, _count("jobs", values, 0) or available_processors(), page, not options.no_figure, told)


def _count(name: str, values: Mapping[str, Any], least: int) -> int:
    value = values[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"--{name} must be a whole number of at least {least}, got {value!r}")
    return value


def _texts(values: Mapping[str, Any], name: str) -> list[str]:
    return list(fitted(tuple[str, ...], values.get(name) or (), name))


def _arms(values: Mapping[str, Any]) -> list[str]:
    chosen = _texts(values, "arms")
    if values.get("all"):
        # Continuous tokens are sampled in another way and do not start from the same score as the others.
        ordinary = [m.name for m in catalogue().values() if m.online and "step_ids" not in m.source.adds]
        named = {get_method(parse_arm(arm).method).name for arm in chosen}
        named |= {get_method(str(name)).name for name in _texts(values, "without")}
        chosen += [name for name in ordinary if name not in named]
    if not chosen:
        raise ConfigError("what is to be compared? name methods, e.g. unipo compare grpo dapo, or give --all")
    return chosen


def _tasks(options: Options, in_file: Any, train: Mapping[str, Any]) -> dict[str, str]:
    """Name -> what `data.task` takes; the data file under its own name, with nothing for the task."""
    data = train.get("data", {}).get("data", "")
    if options.task and data:
        raise ConfigError(f"give tasks or data, not both: {', '.join(options.task)} and {data}")
    if data:
        return {Path(data).name: ""}
    if options.task:
        return {t: t for t in options.task}
    if isinstance(in_file, Mapping):
        return {str(k): str(v) for k, v in in_file.items()}
    listed = [in_file] if isinstance(in_file, str) else list(in_file or ("scratchpad",))
    return {str(t): str(t) for t in listed}


def _train(options: Options, in_file: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `unipo train` for all runs: the file's, then those of --with, then the short options."""
    short: dict[str, Any] = {"lr": options.lr, "max_tokens": options.max_tokens or None, "model": options.model}
    short |= {"data": options.data, "reward": options.reward}
    given = merged(expand(settings(options.with_)), expand({k: v for k, v in short.items() if v not in (None, "")}))
    plain = plain_train(merged(expand(in_file), given))
    if options.plugin:
        plain["plugin"] = [*plain.get("plugin", ()), *options.plugin]
    return plain


def publish(asked: Asked, found: Mapping[str, Any]) -> None:
    """Write the page where the reader looks for it, with its picture."""
    page, drawn = Path(asked.page), asked.out / "comparison.png"
    page.parent.mkdir(parents=True, exist_ok=True)
    picture = page.with_suffix(".png")
    if asked.figure and drawn.is_file():
        picture.write_bytes(drawn.read_bytes())
    page.write_text(markdown(found, "The methods side by side", picture.name if picture.is_file() else "", asked.note))


def text(found: Mapping[str, Any]) -> str:
    """A summary for people."""
    blocks = [heading(found)]
    blocks += [f"{title}\n{table(rows, head)}" for title, head, rows in tables(found)]
    blocks += [f"failed: {name}: {why}" for name, why in found["failures"].items()]
    return "\n\n".join(blocks)
