"""Experiments of the shelf: their arms differ in the claim alone, and their measures say what they are named for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unipo.method import diff
from unipo.parts.behaviour import LengthBonus
from unipo.reproduce.shelf import files, find, load, shelf


def differing(slug: str) -> set[str]:
    """Paths in which the two arms that decide differ."""
    stated = load(find(slug))
    arms = {name: arm.resolved() for name, arm in stated.parsed().items()}
    return {change.path for change in diff(arms[stated.baseline], arms[stated.system])}


def test_dapo_differs_from_its_baseline_in_the_four_changes_of_the_claim() -> None:
    assert differing("dapo") == {"selection", "shaping", "objective.high", "average"}


def test_grpo_differs_from_its_baseline_in_the_advantage() -> None:
    # With one update per batch the ratio is 1, so that the clipped objective has the score function's gradient.
    assert differing("grpo") == {"advantage", "objective"}


def test_gcpos_length_bonus_is_paid_in_every_arm() -> None:
    for arm in load(find("gcpo-geometryzero")).parsed().values():
        assert LengthBonus() in arm.resolved().shaping


@pytest.mark.parametrize("slug", [p.stem for p in files(shelf())])
def test_the_search_looks_at_the_score_that_decides(slug: str) -> None:
    stated = load(find(slug))
    first = stated.metrics[0].name
    assert first == stated.select or first not in ("final", "area")


def test_every_arm_of_dpo_asks_for_pairs() -> None:
    for arm in load(find("dpo")).parsed().values():
        assert arm.resolved().objective.compares == 2


# -- dr-grpo --------------------------------------------------------------------------------------
def wrong_excess(run: Path, rows: list[tuple[int, float, int]]) -> float:
    """What dr-grpo measures of a run with these (step, score, tokens)."""
    told = [{"step": step, "score": score, "tokens": [0] * n} for step, score, n in rows]
    (run / "completions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in told))
    measure = load(find("dr-grpo")).measure
    assert measure is not None
    return measure(run)["wrong_excess"]


def test_wrong_responses_are_compared_with_right_ones_of_their_own_step(tmp_path: Path) -> None:
    early = [(step, score, 20) for step in range(1, 9) for score in (0.0, 1.0)]
    # Step 9: 12 is 2 above the mean of 8 and 12, step 10: 5 and 7 are 1 and 3 above 4.  (2 + 1 + 3) / 3 = 2.
    late = [(9, 0.0, 12), (9, 1.0, 8), (9, 1.0, 12), (10, 0.0, 5), (10, 0.0, 7), (10, 1.0, 4)]
    assert wrong_excess(tmp_path, early + late) == pytest.approx(2.0)


def test_a_step_of_one_kind_says_nothing_about_wrong_responses(tmp_path: Path) -> None:
    assert wrong_excess(tmp_path, [(1, 0.0, 9), (1, 1.0, 3), (10, 1.0, 4)]) == 0.0
    assert wrong_excess(tmp_path, [(1, 0.0, 9), (1, 1.0, 3), (10, 0.0, 4)]) == 0.0
