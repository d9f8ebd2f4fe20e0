from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unipo.errors import ConfigError
from unipo.evaluate.record import file_name, keep, kept
from unipo.training.saved import Saved

RECORD: dict[str, Any] = {"model": "m", "task": "../odd name/é?x", "k": 1, "seed": 0, "accuracy": {}}


def test_a_question_asked_again_replaces_its_answer_and_another_does_not(tmp_path: Path) -> None:
    saved = Saved(tmp_path / "model", tmp_path, 7)
    first = keep({**RECORD, "accuracy": {"accuracy": 0.1}}, saved)
    assert keep({**RECORD, "accuracy": {"accuracy": 0.2}}, saved) == first
    assert keep({**RECORD, "k": 4}, saved) != first
    assert keep({**RECORD, "against": {"model": "other"}}, saved) != first
    assert keep({**RECORD, "data": {"task": "countdown?numbers=3"}}, saved) != first
    assert keep({**RECORD, "compute": "bfloat16"}, saved) != first
    assert len(kept(tmp_path)) == 5
    assert kept(tmp_path, step=8) == []
    assert {r["step"] for r in kept(tmp_path, step=7)} == {7}
    assert first is not None
    assert json.loads(first.read_text())["accuracy"] == {"accuracy": 0.2}


def test_a_tasks_name_never_leaves_the_folder() -> None:
    for task in ("../../etc/passwd", "a/b", "..", "", "x" * 500):
        name = file_name({**RECORD, "task": task, "harness": ["h"]}, 1)
        assert "/" not in name
        assert name.startswith("step-000001-")
        assert len(name) < 100


def test_a_model_of_no_run_is_kept_only_where_asked(tmp_path: Path) -> None:
    assert keep(RECORD, None) is None
    assert keep(RECORD, Saved(tmp_path), str(tmp_path / "new" / "out.json")) == tmp_path / "new" / "out.json"
    assert json.loads((tmp_path / "new" / "out.json").read_text()) == RECORD


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "step-000001-x.json").write_text("{")
    with pytest.raises(ConfigError, match=r"step-000001-x\.json.*delete it"):
        kept(tmp_path)


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write the evaluation"):
        keep(RECORD, None, str(tmp_path / "file" / "out.json"))
