"""A whole comparison: what is not yet done of its runs, then what they say."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from unipo.compare.crew import work
from unipo.compare.figure import draw
from unipo.compare.outcome import Outcome, read
from unipo.compare.plan import Plan, Run, check, settle
from unipo.compare.summary import MANY, SCORES, markdown, matrix, summarise
from unipo.compare.worker import Job
from unipo.errors import ConfigError
from unipo.evaluate.statistics import bootstrap, interquartile_mean
from unipo.hold import holding
from unipo.training.config import to_dict
from unipo.training.setup import load_task

Note = Callable[[str], None]


def run_all(plan: Plan, folder: Path, workers: int, note: Note) -> tuple[list[Outcome], dict[str, str]]:
    """Do what is left of a plan's runs. Returns the outcomes in the plan's order, and run -> why it failed.

    A killed comparison goes on where it stopped: finished runs are read, a run begun is resumed.
    Raises ConfigError: a plan that cannot work, or settings that changed since the directory was begun.
    """
    check(plan)
    _check_heldout(plan)
    with holding(folder):
        settle(plan, folder)
        left = [r for r in plan.runs if read(folder / r.place) is None]
        if len(left) < len(plan.runs):
            note(f"{len(plan.runs) - len(left)} of {len(plan.runs)} runs are finished already")
        jobs = {_job(plan, r, folder).folder: (r, _job(plan, r, folder)) for r in left}
        failures: dict[str, str] = {}
        clock = _Clock(len(left))

        def report(job: Job, reason: str) -> None:
            run = jobs[job.folder][0]
            if reason:
                failures[str(run)] = reason
            found = read(job.folder)
            said = f"failed: {reason}" if found is None else f"{100 * found.final:.1f} % at the end"
            note(f"{clock.tick()}  {run}: {said}")

        work([job for _, job in jobs.values()], workers, folder, report)
    found = [(r, read(folder / r.place)) for r in plan.runs]
    return [o for _, o in found if o is not None], failures


def _job(plan: Plan, run: Run, folder: Path) -> Job:
    config = to_dict(plan.config(run, folder))
    return Job(run.arm.name, run.task, run.seed, plan.budget.unit, config, plan.measure, plan.keep)


def _check_heldout(plan: Plan) -> None:
    """Every task has prompts to evaluate on."""
    for run in plan.runs[: len(plan.arms) * len(plan.tasks) : len(plan.arms)]:
        config = plan.config(run, Path())
        task = load_task(config.data, run.arm.resolved(config.plugin))
        if not task.heldout:
            raise ConfigError(
                f"{run.task} holds nothing out, so there is nothing to compare on: e.g. --with data.heldout.size=200"
            )


class _Clock:
    """How many are done, and how long the others may take."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, time.perf_counter()

    def tick(self) -> str:
        self.done += 1
        left = (time.perf_counter() - self.start) / self.done * (self.total - self.done)
        told = f", about {left / 60:.0f} min left" if left >= 90 else f", about {left:.0f} s left"
        return f"{self.done}/{self.total}{told if self.done < self.total else ''}"


def compare(
    plan: Plan, folder: Path, workers: int = 1, note: Note = lambda text: None, figure: bool = True
) -> dict[str, Any]:
    """Run what is left and write comparison.json, comparison.md and comparison.png into the directory.

    Returns the summary of `unipo.compare.summary.summarise`.
    """
    outcomes, failures = run_all(plan, folder, workers, note)
    found = summarise(plan, outcomes, failures)
    (folder / "comparison.json").write_text(json.dumps(found, indent=1) + "\n")
    picture = picture_of(plan, outcomes, found, folder / "comparison.png") if figure and outcomes else None
    page = markdown(found, "Comparison", picture.name if picture else "")
    (folder / "comparison.md").write_text(page)
    return found


def picture_of(plan: Plan, outcomes: Sequence[Outcome], found: dict[str, Any], path: Path) -> Path | None:
    """Curves by task and the interquartile means, of the arms whose runs are all there."""
    arms, tasks = list(found["results"]), list(plan.tasks)
    if not arms:
        return None
    if len(arms) <= MANY:
        bars = {"final, IQM": {a: bootstrap(interquartile_mean, matrix(outcomes, a, tasks, "final")) for a in arms}}
        return draw(outcomes, arms, tasks, found["budget"], path, bars)
    # So many curves cannot be told apart.
    arms.sort(key=lambda a: -found["results"][a]["iqm"]["final"]["value"])
    bars = {
        f"{name}, IQM": {a: bootstrap(interquartile_mean, matrix(outcomes, a, tasks, name)) for a in arms}
        for name in SCORES
    }
    return draw(outcomes, arms, [], found["budget"], path, bars)
