"""A reproduction from search to verdict, on the harness of `unipo.compare`."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

import unipo
from unipo.compare.code import states
from unipo.compare.figure import draw
from unipo.compare.outcome import NAME as OUTCOME
from unipo.compare.outcome import Outcome, of_arm
from unipo.compare.plan import Arm
from unipo.compare.run import run_all
from unipo.compare.summary import COSTS
from unipo.errors import TrainingError
from unipo.evaluate.statistics import Estimate, bootstrap, mean_score
from unipo.reproduce.claim import RULE, SEARCH_SEED, Metric, Reproduction, point_name, verdict, with_settings
from unipo.reproduce.lesson import Lesson
from unipo.training.config import merged

Note = Callable[[str], None]


def reproduce(stated: Reproduction, file: Path, folder: Path, workers: int, note: Note) -> tuple[dict[str, Any], Any]:
    """Search, run, judge. Returns the record to keep, and the outcomes it was made from.

    file: where the reproduction is stated; folder: of its runs, which are taken up again if they are there.
    Raises TrainingError where a run failed: no verdict is given on the others.
    """
    begun = _begun(folder)
    stated = started(stated, folder / "model", note)
    chosen, search = _search(stated, file, folder / "search", workers, note)
    plan = stated.plan(file, tuple(chosen.values()), tuple(range(stated.seeds)))
    outcomes = _whole(*run_all(plan, folder / "final", workers, note))
    record = {
        "slug": file.stem,
        "method": stated.method,
        "claim": stated.claim,
        **judged(stated, outcomes),
        "rule": RULE,
        "date": finished(folder),
        "seeds": list(plan.seeds),
        "task": stated.task,
        "budget": asdict(plan.budget),
        "responses": stated.responses,
        "points": stated.points,
        "train": stated.settings(),
        "start": described(stated.start),
        "arms": {
            n: {"spelling": stated.arms[n], "method": a.method, "set": a.set, "optim": a.optim}
            for n, a in chosen.items()
        },
        "search": search,
        "cost": {n: {c: _mean([o.cost[c] for o in of_arm(outcomes, n)]) for c in COSTS} for n in chosen},
        "curves": {n: [_curve(o) for o in of_arm(outcomes, n)] for n in chosen},
        "notes": stated.notes,
        "versions": begun,
        "code": sorted({*states(outcomes), *search["code"]}),
    }
    return record, outcomes


def started(stated: Reproduction, folder: Path, note: Note) -> Reproduction:
    """The experiment from the model that its `start` writes, if it has one. folder: of that model."""
    if stated.start is None:
        return stated
    if not folder.is_dir():
        note(f"making the model that all runs start from: {described(stated.start)}")
        unfinished = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        stated.start(unfinished)
        unfinished.rename(folder)
    return replace(stated, train=merged(stated.train, {"policy": {"model": str(folder)}}))


def described(start: Callable[..., object] | None) -> str:
    """What a reproduction's `start` makes, in its own words: a lesson's, or the first line of a function's docstring."""
    if isinstance(start, partial):
        start = start.func
    if start is None or isinstance(start, Lesson):
        return "the shipped model" if start is None else str(start)
    return (start.__doc__ or start.__name__).strip().splitlines()[0]


def _search(
    stated: Reproduction, file: Path, folder: Path, workers: int, note: Note
) -> tuple[dict[str, Arm], dict[str, Any]]:
    """(each arm with the settings chosen for it, what was tried). Every arm is searched over the same points."""
    arms, points = stated.parsed(), stated.points_of_search()
    told: dict[str, Any] = {"grid": {k: list(v) for k, v in stated.search.items()}, "select": stated.select}
    if len(points) == 1:
        return {n: with_settings(a, points[0]) for n, a in arms.items()}, {
            **told,
            "seeds": [],
            "tried": {},
            "chosen": {},
            "code": [],
        }
    note(f"search: {len(points)} settings for each of {len(arms)} arms")
    named = {point_name(n, p): (n, p, with_settings(a, p)) for n, a in arms.items() for p in points}
    tried_arms = tuple(Arm(name, a.method, a.set, a.optim) for name, (_, _, a) in named.items())
    seeds = tuple(SEARCH_SEED + i for i in range(stated.search_seeds))
    outcomes = _whole(*run_all(stated.plan(file, tried_arms, seeds), folder, workers, note))
    tried: dict[str, list[dict[str, Any]]] = {n: [] for n in arms}
    for name, (arm, point, _) in named.items():
        tried[arm].append({"set": point, "value": _mean([o.value(stated.select) for o in of_arm(outcomes, name)])})
    best = {n: max(rows, key=lambda row: row["value"])["set"] for n, rows in tried.items()}
    chosen = {n: with_settings(a, best[n]) for n, a in arms.items()}
    return chosen, {**told, "seeds": list(seeds), "tried": tried, "chosen": best, "code": states(outcomes)}


def _whole(outcomes: list[Outcome], failures: Mapping[str, str]) -> list[Outcome]:
    if failures:
        name, why = next(iter(failures.items()))
        raise TrainingError(f"{len(failures)} runs failed, so there is no verdict; {name}: {why}")
    return outcomes


def judged(stated: Reproduction, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The verdict, and for every metric each arm's values and the paired differences of the system to the others."""
    rows = [_measured(stated, metric, outcomes) for metric in stated.metrics]
    first = rows[0]["differences"][stated.baseline]
    return {"verdict": verdict(first["low"], first["high"], stated.metrics[0].higher), "metrics": rows}


def _measured(stated: Reproduction, metric: Metric, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    values = {n: [o.value(metric.name) for o in of_arm(outcomes, n)] for n in stated.arms}
    system = values[stated.system]
    others = {n: [a - b for a, b in zip(system, v, strict=True)] for n, v in values.items() if n != stated.system}
    return {
        **asdict(metric),
        "arms": {n: {**estimate(v).as_dict(), "values": v} for n, v in values.items()},
        "differences": {n: {**estimate(v).as_dict(), "values": v} for n, v in others.items()},
    }


def estimate(values: Sequence[float]) -> Estimate:
    """Mean over seeds with its 95 % interval."""
    return bootstrap(mean_score, torch.tensor(values, dtype=torch.float64).unsqueeze(1))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _curve(outcome: Outcome) -> dict[str, Any]:
    """One run's curve as rows of [steps, tokens, seconds, score]."""
    return {
        "seed": outcome.seed,
        "points": [[p.steps, p.tokens, round(p.seconds, 3), p.score] for p in outcome.curve],
        "measures": dict(outcome.measures),
    }


def finished(folder: Path) -> str:
    """The day on which the last of the runs ended, which may be before today."""
    newest = max(p.stat().st_mtime for p in (folder / "final").rglob(OUTCOME))
    return datetime.fromtimestamp(newest, UTC).date().isoformat()


def _begun(folder: Path) -> dict[str, str]:
    """The versions with which these runs were begun."""
    path = folder / "versions.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(versions()) + "\n")
    found: dict[str, str] = json.loads(path.read_text())
    return found


def versions() -> dict[str, str]:
    """What it is run with. commit: of the repository, empty outside of one."""
    import transformers

    asked = ["git", "-C", str(Path(unipo.__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(asked, capture_output=True, text=True, timeout=10).stdout.strip()
    except OSError:
        commit = ""
    found = {"unipo": unipo.__version__, "commit": commit, "python": platform.python_version()}
    return found | {"torch": torch.__version__, "transformers": transformers.__version__}


def keep(record: Mapping[str, Any], outcomes: Sequence[Outcome], path: Path) -> Path:
    """Write a result and its picture; returns the picture's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return picture(record, outcomes, path.with_suffix(".png"))


def picture(record: Mapping[str, Any], outcomes: Sequence[Outcome], path: Path) -> Path:
    """Curves of held-out accuracy where there are any, and what every arm came to by each metric."""
    bars = {
        row["what"]: {n: Estimate(v["value"], v["low"], v["high"]) for n, v in row["arms"].items()}
        for row in record["metrics"]
    }
    tasks = [record["task"]] if record["points"] else []
    return draw(outcomes, list(record["arms"]), tasks, record["budget"], path, bars)
