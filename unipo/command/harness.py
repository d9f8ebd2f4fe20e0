"""`unipo eval --harness`: lm-evaluation-harness on its own tasks."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any

from unipo.command.models import refuse_continuous
from unipo.command.output import results_only, table
from unipo.errors import ConfigError
from unipo.training.card import versions
from unipo.training.resume import collect_changes
from unipo.training.saved import Saved

# What it asks of the command; every other option is about unipo's own tasks.
TAKEN = ("model", "limit", "seed", "compute", "harness", "harness_tasks", "plugin", "out", "json")


def by_harness(o: Any, saved: Saved | None) -> dict[str, Any]:
    """The harness's own numbers on its own tasks."""
    from unipo.evaluate.harness import run_harness
    from unipo.training.setup import model_path

    if idle := without_meaning(o):
        raise ConfigError(f"--harness runs the harness's own tasks its own way; leave out {', '.join(idle)}")
    refuse_continuous(saved, o.plugin)
    folder = str(saved.model) if saved else model_path(o.model)
    with results_only(True):
        found = run_harness(folder, o.harness, limit=o.limit, tasks=o.harness_tasks, seed=o.seed, compute=o.compute)
    record = {"model": o.model, "harness": list(o.harness), "limit": o.limit, "seed": o.seed, "compute": o.compute}
    record |= found
    return {**record, "versions": versions() | found["versions"], "time": time.strftime("%Y-%m-%dT%H:%M:%S")}


def without_meaning(o: Any) -> list[str]:
    """The options given that the harness has no use for."""
    plain, changes = type(o)(model=o.model), dict[str, Any]()
    for name in (f.name for f in fields(o) if f.name not in TAKEN):
        collect_changes(getattr(o, name), getattr(plain, name), name, changes)
    return [f"--{path.removeprefix('short_').replace('_', '-')}" for path in changes]


def harness_words(found: dict[str, Any]) -> str:
    """Its numbers for people."""
    rows = [
        (task, metric, f"{n['value']:.4f}", "" if n["standard_error"] is None else f"{n['standard_error']:.4f}")
        for task, metrics in found["results"].items()
        for metric, n in metrics.items()
    ]
    return f"{found['model']}, lm-evaluation-harness {found['versions']['lm-eval']}\n" + table(
        rows, ("task", "metric", "value", "standard error")
    )
