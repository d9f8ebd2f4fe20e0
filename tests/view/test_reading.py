"""What is read of a run directory, also while it is written."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.view.conftest import HOSTILE, completion, metrics, trace, write_lines, write_run
from unipo.errors import ConfigError
from unipo.hold import hold
from unipo.view.delta import Seen, delta, flat
from unipo.view.jsonlog import JsonLog
from unipo.view.reading import Run, find_runs
from unipo.view.tokens import column_info, with_derived


def test_a_line_that_is_still_being_written_waits(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"a": 1}\n{"a": 2')
    log = JsonLog(file)
    assert [line.record for line in log.lines()] == [{"a": 1}]
    assert list(log.lines()) == []
    with file.open("a") as end:
        end.write("}\n")
    (line,) = log.lines()
    assert line.record == {"a": 2} == log.at(line.at, line.size)


def test_a_response_may_hold_what_python_takes_for_the_end_of_a_line(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    write_lines(file, [{"text": "a\u2028b\x85c\x0bd"}, {"text": "e"}])
    assert [line.record["text"] for line in JsonLog(file).lines()] == ["a\u2028b\x85c\x0bd", "e"]


def test_lines_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"a": 1}\n{"a":\n[1]\n\n{"a": 2}\n')
    log = JsonLog(file)
    assert len(list(log.lines())) == 2
    assert log.broken == 2


def test_a_run_is_read_on_as_it_grows(small: Path) -> None:
    run = Run(small)
    run.refresh()
    assert len(run) == 240
    first = delta(run, Seen())
    seen = Seen(run.generation, 30, 240, len(first["prompts"]))
    write_lines(small / "metrics.jsonl", [metrics(31, 31) | {"new": 5.0}], "a")
    write_lines(small / "completions.jsonl", [completion(31, 0, "the new one")], "a")
    run.refresh()
    news = delta(run, seen)
    assert news["rows"]["preview"] == ["the new one"]
    assert news["prompts"] == ["Question 0 of step 31: what is 40 + 2?"]
    assert news["series"]["new"] == [5.0]
    assert run.series["new"] == [None] * 30 + [5.0]
    assert len(news["series"]["step"]) == 1


def test_a_run_that_was_resumed_from_an_earlier_step_begins_anew(small: Path) -> None:
    run = Run(small)
    run.refresh()
    before = run.generation
    lines = (small / "metrics.jsonl").read_text().splitlines(keepends=True)[:10]
    (small / "metrics.tmp").write_text("".join(lines))
    (small / "metrics.tmp").replace(small / "metrics.jsonl")
    run.refresh()
    assert run.generation == before + 1
    assert run.steps == 10
    assert delta(run, Seen(before, 30, 240, 99))["from"] == {"steps": 0, "rows": 0, "prompts": 0}


def test_a_long_run_is_read_in_pieces(small: Path) -> None:
    run = Run(small)
    assert run.refresh(100)
    assert len(run) == 100
    assert run.refresh(100)
    assert not run.refresh(100)
    assert len(run) == 240


def test_a_token_record_finds_its_response_whichever_is_read_first(small: Path) -> None:
    run = Run(small)
    run.refresh(0)
    run.refresh()
    assert sum(run.rows["traced"]) == 60
    write_lines(small / "completions.jsonl", [completion(31, 0, "a b")], "a")
    run.refresh()
    assert run.rows["traced"][-1] == 0
    write_lines(small / "tokens.jsonl", [trace(31, 0, "a b")], "a")
    run.refresh()
    assert run.rows["traced"][-1] == 1
    assert run.detail(240)["pieces"] == ["a", " b"]


def test_details_hold_the_tokens_and_what_follows_from_their_columns(small: Path) -> None:
    run = Run(small)
    run.refresh()
    record = run.detail(8)
    assert "".join(record["pieces"]) == record["text"]
    columns = record["columns"]
    assert columns["mask"] == [1] * len(record["pieces"])  # written as one number
    # new - old = -0.12 * 3 - (-0.1 * 3 - 0.01) = -0.05
    assert columns["ratio"][3] == pytest.approx(math.exp(-0.05), rel=1e-3)
    assert columns["kl_reference"][2] == pytest.approx(0.06)
    assert "pieces" not in run.detail(10)


def test_a_column_of_unknown_values_stays_unknown() -> None:
    columns = with_derived({"new_logp": [None, -1.0], "old_logp": [-1.0, -1.0], "odd_column": 3}, 2)
    assert columns["ratio"] == [None, 1.0]
    assert columns["odd_column"] == [3, 3]
    assert column_info("odd_column").label == "odd column"


def test_numbers_without_a_name_in_json_become_null(small: Path) -> None:
    write_lines(small / "metrics.jsonl", [metrics(31, 31) | {"loss": math.nan, "grad_norm": math.inf}], "a")
    run = Run(small)
    run.refresh()
    text = json.dumps(delta(run, Seen()), allow_nan=False)
    assert json.loads(text)["series"]["loss"][-1] is None


def test_runs_are_found_by_path_by_directory_and_by_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no run in runs/ yet"):
        find_runs([])
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, steps=1)
    assert find_runs(["runs/b", "runs"]) == [Path("runs/b"), Path("runs/a")]
    assert len(find_runs([])) == 1
    with pytest.raises(ConfigError, match="beside it: a, b"):
        find_runs(["runs/c"])


def test_a_run_that_a_process_holds_is_running_however_long_it_writes_nothing(tmp_path: Path) -> None:
    path, long_ago = write_run(tmp_path / "a", steps=1), time.time() - 3600
    for file in path.iterdir():
        os.utime(file, (long_ago, long_ago))
    with hold(path):
        assert Run(path).state() == "running"  # resumed, though it was finished
        (path / "result.json").unlink()
        assert Run(path).state() == "running"
    assert Run(path).state() == "stopped"


def test_a_run_that_writes_any_of_its_logs_is_running(tmp_path: Path) -> None:
    path, now = write_run(tmp_path / "a", steps=1), time.time()
    assert Run(path).state() == "finished"
    (path / "result.json").unlink()
    for file in path.iterdir():
        os.utime(file, (now - 3600, now - 3600))
    assert Run(path).state() == "stopped"
    for name in ("events", "evaluations"):
        os.utime(path / f"{name}.jsonl", (now, now))
        assert Run(path).state() == "running"
        os.utime(path / f"{name}.jsonl", (now - 3600, now - 3600))


def test_settings_are_shown_by_their_paths() -> None:
    assert flat({"a": {"b": 1, "c": "x"}, "d": [], "set": {"e.f": 2}}) == {
        "a.b": "1",
        "a.c": "x",
        "d": "[]",
        "set": '{"e.f": 2}',
    }


def test_the_first_response_is_the_hostile_one(small: Path) -> None:
    run = Run(small)
    run.refresh()
    assert run.detail(0)["text"] == HOSTILE


def test_seeing_a_run_loads_no_model_code() -> None:
    script = (
        "import sys, unipo.command.view, unipo.command.runs, unipo.command.show, unipo.view.server;"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
