"""The arrows between rooms that docs/architecture.md promises."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from blocks import ROOT

SOURCE = ROOT / "unipo"
MODEL_CODE = ("transformers", "peft", "unipo.policy", "unipo.rollout", "unipo.training", "unipo.evaluate")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def reaches(path: Path, modules: tuple[str, ...]) -> list[str]:
    return sorted(i for i in imports(path) if any(i == m or i.startswith(f"{m}.") for m in modules))


FREE_OF_MODELS = [
    *sorted((SOURCE / "parts").glob("*.py")),
    *sorted((SOURCE / "methods").glob("*.py")),
    *(SOURCE / f"{n}.py" for n in ("layout", "batch", "columns", "signals", "method", "registry", "judge")),
]


@pytest.mark.parametrize("path", FREE_OF_MODELS, ids=lambda p: p.name)
def test_parts_methods_and_judge_import_no_model_code(path: Path) -> None:
    assert reaches(path, MODEL_CODE) == []


@pytest.mark.parametrize("path", sorted((SOURCE / "policy").glob("*.py")), ids=lambda p: p.name)
def test_the_policy_knows_no_method(path: Path) -> None:
    above = ("unipo.method", "unipo.methods", "unipo.registry", "unipo.judge", "unipo.training", "unipo.rollout")
    assert reaches(path, above) == []


@pytest.mark.parametrize("room", ["rewards", "tasks"])
def test_rewards_and_tasks_know_neither_models_nor_methods(room: str) -> None:
    above = (*MODEL_CODE, "unipo.method", "unipo.methods", "unipo.judge")
    assert {p.name: r for p in sorted((SOURCE / room).rglob("*.py")) if (r := reaches(p, above))} == {}


def test_there_is_no_room_for_helpers() -> None:
    assert [p for p in SOURCE.rglob("*") if p.stem in ("utils", "util", "helpers", "common", "misc")] == []
