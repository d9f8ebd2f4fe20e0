"""Seeing runs from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Said
from tests.view.conftest import HOSTILE, write_lines, write_run
from unipo.command.show import harmless
from unipo.view.shade import shades

Command = Callable[..., Said]


def test_runs_lists_every_run_with_its_curve(unipo: Command, tmp_path: Path) -> None:
    assert "no run in runs/" in unipo("runs").out
    write_run(tmp_path / "runs" / "first")
    write_run(tmp_path / "runs" / "second", steps=3)
    said = unipo("runs")
    assert said.status == 0
    head, *rows = said.out.splitlines()
    assert head.split() == ["run", "method", "steps", "state", "reward", "held-out", "warnings"]
    first = next(row for row in rows if row.startswith("first"))
    assert "30/30" in first
    assert "finished" in first
    assert "▁" in first
    assert "█" in first
    assert "0.300 to 0.700" in first
    assert first.endswith("entropy_collapse")
    listed = {r["run"]: r for r in unipo("runs", "--json").json}
    assert listed["runs/first"]["warnings"] == ["entropy_collapse"]
    assert listed["runs/second"]["steps"] == 3


def test_show_prints_the_worst_of_a_step(unipo: Command, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    said = unipo("show", "run", "--step", 4, "--worst", 2, "--json")
    # rewards of step 4 are ((28 + 3 row) mod 5) / 4: the lowest, 0, at row 4 (40), then 1/4 at row 1 (31)
    assert [(r["row"], r["reward"]) for r in said.json] == [(4, 0.0), (1, 0.25)]
    text = unipo("show", "run", "--step", 4, "--worst", 2).out
    assert text.index("(4, 4)") < text.index("(4, 1)")
    assert "expected: 42" in text


def test_show_without_a_step_shows_the_best_and_the_worst_of_the_last(unipo: Command, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    found = unipo("show", "run", "--json").json
    assert [r["step"] for r in found] == [30, 30]
    assert [r["reward"] for r in found] == [0.0, 1.0]


def test_show_names_what_it_does_not_know(unipo: Command, tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    assert "did you mean 'reward'" in unipo("show", "run", "--by", "rewards").err
    assert "step 77 has no written response" in unipo("show", "run", "--step", 77).err
    said = unipo("show", "run", "--step", 1, "--best", 8, "--colour", "advantages")
    assert said.status == 2
    assert "did you mean 'advantage'" in said.err


def test_show_prints_no_character_that_a_terminal_obeys(unipo: Command, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=1, traced=0)
    record = {
        "step": 2,
        "prompt": "\x1b[2Jgone",
        "text": "[red]not markup[/red]\x1b]0;title\x07",
        "tokens": [1],
        "reward": 1.0,
    }
    write_lines(run / "completions.jsonl", [record], "a")
    text = unipo("show", "run", "--step", 2).out
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]not markup[/red]" in text
    assert harmless("a\tb\n\x1b\u202e") == "a\tb\n\ufffd\ufffd"


def test_tokens_are_shaded_by_sign_and_size() -> None:
    assert shades("advantage", [1.0, -0.5, 0.0, None]) == [("plus", 1.0), ("minus", 0.5), ("minus", 0.0), ("none", 0.0)]
    assert shades("clipped", [1, 0]) == [("amount", 0.6), ("none", 0.0)]
    assert [kind for kind, _ in shades("ratio", [2.0, 0.5])] == ["plus", "minus"]
    assert shades("advantage", []) == []


@pytest.mark.parametrize("arguments", [("view", "nowhere"), ("view", "--no-serve"), ("show", "nowhere")])
def test_what_cannot_be_shown_is_an_error(unipo: Command, arguments: tuple[str, ...]) -> None:
    said = unipo(*arguments)
    assert said.status == 2
    assert said.err.startswith("unipo: ")


def test_view_needs_a_file_or_a_server(unipo: Command, tmp_path: Path) -> None:
    write_run(tmp_path / "run", steps=1)
    assert "--html FILE" in unipo("view", "run", "--no-serve").err
    said = unipo("view", "run", "--html", "page.html", "--no-serve")
    assert said.status == 0
    assert HOSTILE not in (tmp_path / "page.html").read_text(encoding="utf-8")
    told = unipo("view", "run", "--html", "page.html", "--no-serve", "--json").json
    assert told["bytes"] == (tmp_path / "page.html").stat().st_size
    assert told["runs"] == ["run"]
