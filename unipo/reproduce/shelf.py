"""Where reproductions lie, and what has been kept of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import unipo
from unipo.compare.spelling import parse_budget
from unipo.errors import ConfigError, unknown
from unipo.registry import load_plugin
from unipo.reproduce.claim import Reproduction
from unipo.reproduce.run import described

FOLDER = "reproductions"


def shelf() -> Path:
    """The directory of reproductions: of the repository that this library lies in, or of the current directory.

    Raises ConfigError where there is none, as in an installed package.
    """
    for root in (Path(unipo.__file__).parents[1], Path()):
        if (root / FOLDER).is_dir():
            return root / FOLDER
    raise ConfigError(
        "the reproductions are files of unipo's repository and are not part of the installed package: clone the "
        "repository and run this command there, or name a file of your own, e.g. unipo reproduce mine.py"
    )


def find(name: str) -> Path:
    """The file of a reproduction: a slug of the shelf, or the path of a file."""
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise ConfigError(f"{name} is not a file")
        return Path(name)
    known = {p.stem: p for p in files(shelf())}
    if name not in known:
        raise unknown("reproduction", name, known)
    return known[name]


def files(folder: Path) -> list[Path]:
    """Every reproduction of a shelf, by name."""
    return sorted(p for p in folder.glob("*.py") if not p.name.startswith("_"))


def load(file: Path) -> Reproduction:
    """The reproduction that a file states in its name REPRODUCTION."""
    load_plugin(file)
    found = getattr(sys.modules[f"unipo_plugin_{file.stem}"], "REPRODUCTION", None)
    if not isinstance(found, Reproduction):
        raise ConfigError(f"{file} states no REPRODUCTION = Reproduction(...)")
    return found


def result_path(file: Path) -> Path:
    """Where the kept result of a reproduction lies; its picture has the same name with .png."""
    return file.parent / "results" / f"{file.stem}.json"


def kept(folder: Path) -> list[dict[str, Any]]:
    """All kept results of a shelf."""
    return [json.loads(p.read_text()) for p in sorted((folder / "results").glob("*.json"))]


def older(folder: Path) -> frozenset[str]:
    """The kept results of a shelf whose experiment is stated otherwise now, or no longer."""
    found = []
    for result in kept(folder):
        file = folder / f"{result['slug']}.py"
        if not file.is_file() or not as_stated(result, load(file)):
            found.append(result["slug"])
    return frozenset(found)


def as_stated(result: Mapping[str, Any], stated: Reproduction) -> bool:
    """Is a kept result of the experiment as it is written down now? (Notes, and how a measure is computed, may differ.)"""
    budget = parse_budget(stated.budget.split())
    now = {
        "claim": stated.claim,
        "arms": list(stated.arms.items()),  # their order says which is the system and which the baseline
        "metrics": [(m.name, m.higher) for m in stated.metrics],
        "task": stated.task,
        "budget": asdict(budget),
        "seeds": list(range(stated.seeds)),
        "responses": stated.responses,
        "points": stated.points,
        "train": json.loads(json.dumps(stated.settings())),
        "start": described(stated.start),
        "grid": {k: list(v) for k, v in stated.search.items()},
        "select": stated.select,
        "search seeds": stated.search_seeds if len(stated.points_of_search()) > 1 else 0,
    }
    search = result.get("search", {})
    then = {name: result.get(name) for name in now}
    then["arms"] = [(name, arm["spelling"]) for name, arm in result.get("arms", {}).items()]
    then["metrics"] = [(m["name"], m["higher"]) for m in result.get("metrics", [])]
    then |= {"grid": search.get("grid"), "select": search.get("select"), "search seeds": len(search.get("seeds", ()))}
    return then == now


def listing(folder: Path) -> list[dict[str, Any]]:
    """Every reproduction with its verdict; verdict and date are None where no result was kept."""
    rows = []
    for file in files(folder):
        stated, path = load(file), result_path(file)
        result = json.loads(path.read_text()) if path.is_file() else {}
        rows.append(
            {
                "slug": file.stem,
                "method": stated.method,
                "claim": stated.claim,
                "verdict": result.get("verdict"),
                "date": result.get("date"),
                "seeds": len(result["seeds"]) if result else stated.seeds,
                "budget": stated.budget,
                "arms": list(stated.arms),
                "current": as_stated(result, stated) if result else None,
            }
        )
    return rows
