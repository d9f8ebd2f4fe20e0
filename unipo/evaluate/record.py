"""Where results of `unipo eval` are kept: RUN/evaluations/, one JSON file per question, for people and pages."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unipo.errors import ConfigError
from unipo.training.saved import Saved

FOLDER = "evaluations"
# What makes two evaluations of one checkpoint the same question; asked again, the newer result replaces the older.
QUESTION = (
    "task",
    "reward",
    "problems",
    "k",
    "temperature",
    "top_p",
    "top_k",
    "max_tokens",
    "stop",
    "seed",
    "data",
    "compute",
    "harness",
    "limit",
)


def keep(record: Mapping[str, Any], saved: Saved | None, also: str = "") -> Path | None:
    """Write a record into the run it belongs to, and to the file `also`. Returns where it lies, if anywhere."""
    place = None
    if saved is not None and saved.run is not None and saved.step is not None:
        place = saved.run / FOLDER / file_name(record, saved.step)
        _write(place, {"step": saved.step, **record})
    if also:
        _write(Path(also), record)
        place = place or Path(also)
    return place


def kept(run: Path, step: int | None = None) -> list[dict[str, Any]]:
    """The results in a run, of one step if given, in the order of their files. Raises ConfigError for a damaged one."""
    found = []
    for file in sorted((run / FOLDER).glob("*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read the evaluation {file}: {error}; delete it or evaluate again") from error
        if step is None or record.get("step") == step:
            found.append(record)
    return found


def file_name(record: Mapping[str, Any], step: int) -> str:
    """step-000060-TASK-DIGEST.json, the digest being of the question."""
    question = {k: v for k in QUESTION if (v := record.get(k)) not in (None, [])}
    if "against" in record:
        question["against"] = record["against"]["model"]
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:8]
    task = record.get("task") or "-".join(record["harness"])
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(str(task)).name).strip("-.")[:60] or "task"
    return f"step-{step:06d}-{plain}-{digest}.json"


def _write(place: Path, record: Mapping[str, Any]) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}.partial")
        partial.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, place)
    except OSError as error:
        raise ConfigError(f"cannot write the evaluation {place}: {error.strerror}") from error
