"""Pages written from the code are what the code says now."""

from __future__ import annotations

import subprocess
import sys

import pytest
from blocks import ROOT

from unipo.columns import COLUMNS, STAGES
from unipo.docs import columns_table, first_line, method_page, show, slug, table, with_block
from unipo.errors import ConfigError
from unipo.parts.advantage import GroupNormalised
from unipo.parts.objective import Clipped
from unipo.registry import catalogue


def test_written_pages_are_up_to_date() -> None:
    # In a process of its own, because other tests register methods.
    done = subprocess.run(
        [sys.executable, "-m", "unipo.docs", "--check", "--root", str(ROOT)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_page_gives_formula_parts_changes_and_doubts() -> None:
    known = catalogue()
    page = method_page(known["cepo"], known)
    assert known["cepo"].explain() in page
    assert "https://arxiv.org/abs/2605.19436" in page
    assert "| `credit.contrastive` | `False` | `True` |" in page
    for said in (*known["cepo"].notes, *known["cepo"].doubts):
        assert said in page


def test_every_column_stands_in_the_table_under_its_stage() -> None:
    text = columns_table()
    places = [text.index(f"**{stage}**") for stage in STAGES]
    assert places == sorted(places)
    for column in COLUMNS.values():
        at = text.index(f"| `{column.name}` |")
        assert places[STAGES.index(column.stage)] < at


def test_a_column_that_a_part_adds_is_of_the_stage_the_table_says() -> None:
    stages = {"source": ("source", "reward"), "signal": ("signal",), "step": ("step",)}
    for method in catalogue().values():
        for name in method.source.adds:
            assert COLUMNS[name].stage in stages["source"], name
        for signal in method.signals:
            for name in signal.adds:
                assert COLUMNS[name].stage in stages["step" if signal.per_step else "signal"], name


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert table(["a"], [["p(y|x)\nand more"]]).splitlines()[-1] == "| p(y\\|x) and more |"


def test_a_part_is_shown_with_all_its_settings() -> None:
    assert show(Clipped(low=0.2, high=0.28)) == "Clipped(low=0.2, high=0.28, dual=none)"


def test_a_part_that_points_to_its_function_is_described_by_it() -> None:
    assert first_line(GroupNormalised()) == "Standardise each reward within its group"


def test_a_name_with_plus_signs_makes_a_plain_address() -> None:
    assert slug("reinforce++") == "reinforce-plus-plus"


def test_a_page_without_its_marks_is_refused() -> None:
    with pytest.raises(ConfigError, match="begin columns"):
        with_block("no marks here", "columns", "x", "page.md")
    assert with_block("a <!-- begin x -->old<!-- end x --> b", "x", "new", "p") == (
        "a <!-- begin x -->\nnew\n<!-- end x --> b"
    )
