"""What a page is told about a run: everything once, then only what is new.

The same record feeds the page that is a file and the page that follows a run: the first one from the beginning, then
one from where the page stands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unipo.view.reading import ROWS, Run, clean
from unipo.view.tokens import known_columns

# Responses in one record to a page; it asks for the next at once.
AT_ONCE = 20_000


@dataclass(frozen=True)
class Seen:
    """How far a page has read: generation of the run, steps, responses and prompts."""

    generation: int = -1
    steps: int = 0
    rows: int = 0
    prompts: int = 0


def delta(run: Run, seen: Seen, most: int = AT_ONCE) -> dict[str, Any]:
    """What is new since `seen`. With another generation (the run was resumed) the page forgets what it had."""
    with run.lock:
        if seen.generation != run.generation:
            seen = Seen(run.generation)
        rows = slice(seen.rows, seen.rows + most)
        done = min(len(run), seen.rows + most)
        prompts = max(run.rows["prompt"][:done][seen.rows :], default=-1) + 1
        return {
            "generation": run.generation,
            "from": {"steps": seen.steps, "rows": seen.rows, "prompts": seen.prompts},
            "series": {name: clean(values[seen.steps :]) for name, values in run.series.items()},
            "rows": {name: run.rows[name][rows] for name in ROWS},
            "prompts": run.prompts[seen.prompts : max(prompts, seen.prompts)],
            "more": done < len(run),
            "total": len(run),
            "state": run.state(),
            "alarms": run.alarms(),
            "evaluations": clean(run.evaluations),
            "events": clean(list(run.events.values())),
            "broken": run.broken,
        }


def about(run: Run) -> dict[str, Any]:
    """What does not change while a run goes on: its configuration and its method."""
    config = run.config()
    data = config.get("data") or {}
    return {
        "name": run.name,
        "path": str(run.path),
        "steps": config.get("steps"),
        "model": (config.get("policy") or {}).get("model") or "the shipped model",
        "task": data.get("data") or data.get("task") or "a task made in Python",
        "config": flat(config),
        "method": run.method(),
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted path -> text, in their order."""
    out: dict[str, str] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and path != "set":
            out |= flat(value, f"{path}.")
        else:
            out[path] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return out


def column_table() -> dict[str, Any]:
    """Label, kind and meaning of the token columns that a page knows, in their order."""
    return {name: vars(info) for name, info in known_columns().items()}
