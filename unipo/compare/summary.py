"""Outcomes to numbers: scores with intervals, chances of improvement, costs; as a record, as tables and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unipo.compare.code import mixed, states
from unipo.compare.outcome import Outcome, of_arm
from unipo.compare.plan import Plan
from unipo.errors import TrainingError
from unipo.evaluate.statistics import Estimate, bootstrap, improvement, interquartile_mean, mean_score
from unipo.markdown import table
from unipo.registry import get_method

# More arms than this are shown in one table for all tasks, each beside the method it grew from instead of all others.
MANY = 12
SCORES = ("final", "area")
COSTS = ("tokens", "updates", "passes", "seconds")
HOW = (
    "Brackets are 95 % bootstrap intervals over seeds (of new runs on the same tasks and evaluation prompts), widened "
    "for few seeds. final: score on held-out prompts at the end; area: mean score over the budget; IQM: interquartile "
    "mean over all runs and tasks. A chance of improvement is that of a run of the row beating a run of the column."
)


def matrix(outcomes: Sequence[Outcome], arm: str, tasks: Sequence[str], name: str) -> Tensor:
    """[seeds, tasks] of one score of one arm."""
    columns = [[o.value(name) for o in of_arm(outcomes, arm, task)] for task in tasks]
    return torch.tensor(columns, dtype=torch.float64).T


def summarise(plan: Plan, outcomes: Sequence[Outcome], failures: Mapping[str, str]) -> dict[str, Any]:
    """Everything a comparison says. An arm with a failed run is listed, and left out of the statistics.

    failures: run -> why it failed.
    """
    tasks = list(plan.tasks)
    wanted = len(plan.seeds) * len(tasks)
    complete = [a.name for a in plan.arms if len(of_arm(outcomes, a.name)) == wanted]
    _check_start(outcomes)
    of = {(arm, s): matrix(outcomes, arm, tasks, s) for arm in complete for s in SCORES}
    arms = {}
    for arm in complete:
        each = {
            task: {s: bootstrap(mean_score, of[arm, s][:, [i]]).as_dict() for s in SCORES}
            for i, task in enumerate(tasks)
        }
        arms[arm] = {
            "tasks": each,
            "iqm": {s: bootstrap(interquartile_mean, of[arm, s]).as_dict() for s in SCORES},
            "mean": {s: bootstrap(mean_score, of[arm, s]).as_dict() for s in SCORES},
            "cost": _costs(of_arm(outcomes, arm)),
        }
    for arm, parent in parents(plan, complete).items():
        apart = of[arm, "final"] - of[parent, "final"]
        arms[arm]["grown_from"] = {"arm": parent, "difference": bootstrap(mean_score, apart).as_dict()}
    pairs = {
        a: {b: bootstrap(improvement, of[a, "final"], of[b, "final"]).as_dict() for b in complete if b != a}
        for a in complete
    }
    start = {t: next(iter(o.curve[0].score for o in outcomes if o.task == t), None) for t in tasks}
    found = {"start": start, "results": arms, "improvement": pairs, "failures": dict(failures)}
    return {**plan.record(), "code": states(outcomes), **found}


def parents(plan: Plan, arms: Sequence[str]) -> dict[str, str]:
    """Of each arm the one whose method it grew from, or the nearest ancestor that was run; without those that have none."""
    plugins = tuple(plan.train.get("plugin", ()))
    runs = {a.name: a.resolved(plugins) for a in plan.arms if a.name in arms}
    of_method = {a.method: a.name for a in reversed(plan.arms) if a.name in arms}
    found = {}
    for name, method in runs.items():
        above = method.parent
        while above and above not in of_method:
            above = get_method(above).parent
        if above and of_method[above] != name:
            found[name] = of_method[above]
    return found


def _costs(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Means over runs."""
    return {name: sum(o.cost[name] for o in outcomes) / len(outcomes) for name in ("steps", *COSTS)}


def _check_start(outcomes: Sequence[Outcome]) -> None:
    """The same weights on the same prompts with the same seeds score the same: all runs of a task begin alike."""
    for task in {o.task for o in outcomes}:
        starts = {o.curve[0].score for o in outcomes if o.task == task}
        if len(starts) > 1:
            raise TrainingError(
                f"the runs on {task} did not start alike: {sorted(starts)} before training. Were the model, the data or "
                "the library changed between them? Start again with another --out"
            )


# -- words -----------------------------------------------------------------------------------------
def percent(e: Mapping[str, float | None] | Estimate) -> str:
    """An estimate of a share, in percent."""
    v = e.as_dict() if isinstance(e, Estimate) else e
    value, low, high = v["value"], v["low"], v["high"]
    assert value is not None
    return f"{100 * value:.1f}" + ("" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]")


Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Title, head and rows of each table of a summary."""
    arms, tasks = found["results"], list(found["tasks"])
    order = sorted(arms, key=lambda a: -arms[a]["iqm"]["final"]["value"])
    if len(order) > MANY:
        made = [_overview(found, order), _against_parents(found, order)]
    else:
        made = [_of_task(found, task, order) for task in tasks]
        if len(tasks) > 1:
            rows = [(a, *(percent(arms[a]["iqm"][s]) for s in SCORES)) for a in order]
            made.append(("all tasks, IQM", ("%", *SCORES), rows))
        if len(order) > 1:
            cells = found["improvement"]
            rows = [(a, *("" if a == b else percent(cells[a][b]) for b in order)) for a in order]
            made.append(("chance of improvement, final", ("%", *order), rows))
    rows = [(a, f"{arms[a]['cost']['steps']:.0f}", *(f"{arms[a]['cost'][c]:,.0f}" for c in COSTS)) for a in order]
    made.append(("cost of a run", ("", "steps", *COSTS), rows))
    return made


def _of_task(found: Mapping[str, Any], task: str, order: Sequence[str]) -> Table:
    rows = [(a, *(percent(found["results"][a]["tasks"][task][s]) for s in SCORES)) for a in order]
    return _begun(found, task), ("%", *SCORES), rows


def _begun(found: Mapping[str, Any], task: str) -> str:
    start = found["start"][task]
    return task if start is None else f"{task} (before: {100 * start:.1f} %)"


def _overview(found: Mapping[str, Any], order: Sequence[str]) -> Table:
    arms, tasks = found["results"], list(found["tasks"])
    head = ("%", "final, IQM", "area, IQM", *(_begun(found, t) for t in tasks))
    rows = []
    for a in order:
        finals = (percent(arms[a]["tasks"][t]["final"]) for t in tasks)
        rows.append((a, *(percent(arms[a]["iqm"][s]) for s in SCORES), *finals))
    return "all tasks; final score of each", head, rows


def _against_parents(found: Mapping[str, Any], order: Sequence[str]) -> Table:
    arms = found["results"]
    grown = {a: arms[a]["grown_from"] for a in order if "grown_from" in arms[a]}
    rows: list[tuple[str, ...]] = []
    for a in sorted(grown, key=lambda a: -grown[a]["difference"]["value"]):
        parent = str(grown[a]["arm"])
        rows.append((a, parent, percent(grown[a]["difference"]), percent(found["improvement"][a][parent])))
    head = ("", "grown from", "final minus that, points", "chance of improvement, %")
    return "against the method it grew from (same seeds, all tasks)", head, rows


def heading(found: Mapping[str, Any]) -> str:
    """What was compared, in one line."""
    budget, seeds = found["budget"], found["seeds"]
    model = found["train"].get("policy", {}).get("model", "") or "the shipped model"
    told = (
        f"{model}, {budget['amount']:,.0f} {budget['unit']} per run, {found['responses']} responses per step, "
        f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}"
    )
    different = mixed(found["code"])
    return f"{told}, {different}" if different else told


def how(found: Mapping[str, Any]) -> str:
    """What the brackets mean, and what they cannot with so few seeds."""
    n = len(found["seeds"])
    if not 2 <= n < 5:
        return HOW
    # The mean lies between the least and the greatest of n draws unless all fall on one side of it.
    return (
        f"{HOW} With {n} seeds the interval of one task cannot be wider than its runs lie apart, and holds the true mean "
        f"about {100 * (1 - 2 * 0.5**n):.0f} % of the time, not 95 %; read it as the span of the runs."
    )


def markdown(found: Mapping[str, Any], title: str, figure: str = "", note: str = "") -> str:
    """A summary as a page. figure: its file, beside the page; note: what else is to be said at its head."""
    blocks = [f"# {title}", heading(found) + ".", how(found), *([note] if note else [])]
    if figure:
        blocks.append(f"![Held-out score over the budget]({figure})")
    for name, head, rows in tables(found):
        blocks += [f"## {name}", table(head, rows)]
    if found["failures"]:
        blocks += ["## failed runs", "\n".join(f"- {run}: {why}" for run, why in found["failures"].items())]
    return "\n\n".join(blocks) + "\n"
