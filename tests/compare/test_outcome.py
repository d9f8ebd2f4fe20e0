from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unipo.compare.code import digest
from unipo.compare.figure import on_grid
from unipo.compare.outcome import Outcome, Point, cost, curve, lines, outcome_of, read, write
from unipo.compare.plan import Budget, Plan
from unipo.compare.run import picture_of
from unipo.compare.spelling import parse_arm
from unipo.compare.summary import MANY, heading, how, markdown, parents, summarise, tables
from unipo.errors import TrainingError


def log(folder: Path, name: str, records: list[dict[str, Any]]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def a_run(folder: Path) -> Path:
    log(
        folder,
        "metrics",
        [
            {"step": 1, "tokens/sampled": 100, "seconds/step": 0.5, "updates/taken": 2, "passes/extra": 3},
            {"step": 2, "tokens/sampled": 50, "seconds/step": 0.25},  # no prompt qualified
            {"step": 3, "tokens/sampled": 150, "seconds/step": 0.25, "updates/taken": 2, "passes/extra": 1},
        ],
    )
    scores = [(0, 0.2), (2, 0.9), (2, 0.4), (3, 0.6)]  # step 2 twice: the run was resumed
    log(folder, "evaluations", [{"step": s, "accuracy": a} for s, a in scores])
    return folder


def test_a_curve_from_the_logs(tmp_path: Path) -> None:
    assert curve(a_run(tmp_path)) == (Point(0, 0, 0.0, 0.2), Point(2, 150, 0.75, 0.4), Point(3, 300, 1.0, 0.6))


def test_logs_hold_what_python_takes_for_the_end_of_a_line(tmp_path: Path) -> None:
    texts = ["a\u2028b\x85c\x0bd", "é"]
    file = tmp_path / "completions.jsonl"
    whole = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)
    file.write_bytes(whole.encode() + '{"text": "é'.encode()[:-1])
    assert [r["text"] for r in lines(tmp_path, "completions")] == texts  # and no line that a kill cut short
    assert lines(tmp_path, "metrics") == []


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    whole = (a_run(tmp_path) / "metrics.jsonl").read_bytes()
    for damaged in (whole.replace(b'{"step": 2', b'{"step', 1), whole.replace(b"seconds", b"sec\xffnds", 1)):
        (tmp_path / "metrics.jsonl").write_bytes(damaged)
        for read_log in (cost, curve):
            with pytest.raises(TrainingError, match=r"metrics.jsonl, line [12] is damaged"):
                read_log(tmp_path)


def test_cost_is_summed_over_the_steps(tmp_path: Path) -> None:
    assert cost(a_run(tmp_path)) == {"steps": 3.0, "tokens": 300.0, "updates": 4.0, "passes": 4.0, "seconds": 1.0}


def test_continuations_are_sampled_tokens_as_in_the_budget(tmp_path: Path) -> None:
    steps = [{"step": i, "tokens/sampled": 100, "tokens/continued": 300} for i in (1, 2)]
    log(tmp_path, "metrics", steps)
    log(tmp_path, "evaluations", [{"step": i, "accuracy": 0.5} for i in (0, 1, 2)])
    assert cost(tmp_path)["tokens"] == 800.0
    assert [p.tokens for p in curve(tmp_path)] == [0, 400, 800]


def test_the_area_is_taken_over_the_budgets_unit(tmp_path: Path) -> None:
    by_tokens = outcome_of(a_run(tmp_path), "a", "t", 0, "tokens", {"x": 1.0})
    assert by_tokens.area == pytest.approx((0.3 * 150 + 0.5 * 150) / 300)
    by_steps = outcome_of(tmp_path, "a", "t", 0, "steps", {})
    assert by_steps.area == pytest.approx((0.3 * 2 + 0.5 * 1) / 3)
    assert (by_tokens.final, by_tokens.value("x"), by_tokens.value("passes")) == (0.6, 1.0, 4.0)
    with pytest.raises(TrainingError, match="no 'y'"):
        by_tokens.value("y")


def test_an_outcome_is_written_and_read_whole(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    outcome = outcome_of(a_run(tmp_path), "a", "t", 3, "tokens", {"x": 1.0})
    write(outcome, tmp_path)
    assert read(tmp_path) == outcome


def made(arm: str, seed: int, final: float, task: str = "t", start: float = 0.5) -> Outcome:
    points = (Point(0, 0, 0.0, start), Point(2, 200, 1.0, final))
    spent = {"steps": 2.0, "tokens": 200.0, "updates": 2.0, "passes": 0.0, "seconds": 1.0}
    return Outcome(arm, task, seed, points, final, (start + final) / 2, spent)


PLAN = Plan((parse_arm("grpo"), parse_arm("dapo")), {"t": "scratchpad"}, (0, 1, 2), Budget("tokens", 200))


def test_a_summary_by_hand() -> None:
    outcomes = [made("grpo", i, f) for i, f in enumerate((0.6, 0.7, 0.8))]
    outcomes += [made("dapo", i, f) for i, f in enumerate((0.7, 0.9, 1.0))]
    found = summarise(PLAN, outcomes, {})
    grpo = found["results"]["grpo"]
    assert grpo["tasks"]["t"]["final"] == {
        "value": pytest.approx(0.7),
        "low": pytest.approx(0.6),
        "high": pytest.approx(0.8),
    }
    assert grpo["tasks"]["t"]["area"]["value"] == pytest.approx(0.6)
    assert grpo["cost"]["tokens"] == 200
    # dapo wins: 0.7 beats 0.6 and ties 0.7; 0.9 and 1.0 beat all three
    assert found["improvement"]["dapo"]["grpo"]["value"] == pytest.approx(7.5 / 9)
    assert found["start"] == {"t": 0.5}
    titles = [title for title, _, _ in tables(found)]
    assert titles == ["t (before: 50.0 %)", "chance of improvement, final", "cost of a run"]
    page = markdown(found, "Title", "x.png")
    assert "| dapo | 86.7 [70.0, 100.0] |" in page
    assert "With 3 seeds" in page
    assert "75 % of the time, not 95 %" in page
    assert "of the time" not in how({"seeds": [0, 1, 2, 3, 4]})
    assert "![Held-out score over the budget](x.png)" in page


def test_a_page_names_runs_that_different_code_made() -> None:
    outcomes = [replace(made(arm, i, 0.6), code="a1") for arm in ("grpo", "dapo") for i in (0, 1, 2)]
    assert "of the code" not in markdown(summarise(PLAN, outcomes, {}), "Title")
    outcomes[1] = replace(outcomes[1], code="b2")
    found = summarise(PLAN, outcomes, {})
    assert found["code"] == ["a1", "b2"]
    assert "3 seeds, runs of 2 states of the code." in markdown(found, "Title")
    assert "runs of 3 states of the code" in heading(summarise(PLAN, [replace(outcomes[0], code=""), *outcomes], {}))


def test_a_run_from_before_the_code_was_noted_down_is_read(tmp_path: Path) -> None:
    write(made("a", 0, 0.6), tmp_path)
    old = json.loads((tmp_path / "outcome.json").read_text())
    del old["code"]
    (tmp_path / "outcome.json").write_text(json.dumps(old))
    assert read(tmp_path) == made("a", 0, 0.6)


def test_the_state_of_the_code_is_that_of_its_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    first = digest(tmp_path)
    (tmp_path / "notes.txt").write_text("no code")
    assert digest(tmp_path) == first
    (tmp_path / "a.py").write_text("x = 2\n")
    second = digest(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, digest(tmp_path)}) == 3


def test_an_arm_stands_beside_the_method_it_grew_from() -> None:
    arms = ("cepo", "grpo[lr=1e-4]", "dapo", "papo-dapo", "grpo")
    plan = replace(PLAN, arms=tuple(parse_arm(a) for a in arms))
    # cepo grew from rlsd, which is not there, and that from grpo; of two arms of grpo the first counts
    assert parents(plan, list(arms)) == {
        "cepo": "grpo[lr=1e-4]",
        "dapo": "grpo[lr=1e-4]",
        "papo-dapo": "dapo",
    }
    assert parents(plan, ["cepo", "papo-dapo"]) == {}
    outcomes = [made("grpo", i, f) for i, f in enumerate((0.6, 0.7, 0.8))]
    outcomes += [made("dapo", i, f) for i, f in enumerate((0.7, 0.7, 0.9))]
    found = summarise(PLAN, outcomes, {})
    grown = found["results"]["dapo"]["grown_from"]
    assert (grown["arm"], grown["difference"]["value"]) == ("grpo", pytest.approx(0.2 / 3))
    assert grown["difference"]["low"] == pytest.approx(0.0)  # the seeds are paired
    assert "grown_from" not in found["results"]["grpo"]


def test_many_arms_are_shown_in_one_table_and_without_curves(tmp_path: Path) -> None:
    arms = ["grpo", *(f"grpo[lr={i}e-6]" for i in range(1, MANY)), "dapo"]
    plan = replace(PLAN, arms=tuple(parse_arm(a) for a in arms), tasks={"t": "t", "u": "u"}, seeds=(0, 1))
    outcomes = [
        made(arm, seed, 0.5 + 0.01 * place + 0.1 * seed, task)
        for place, arm in enumerate(arms)
        for task in ("t", "u")
        for seed in (0, 1)
    ]
    found = summarise(plan, outcomes, {})
    overview, against, _ = tables(found)
    assert overview[1] == ("%", "final, IQM", "area, IQM", "t (before: 50.0 %)", "u (before: 50.0 %)")
    assert [row[0] for row in overview[2]] == arms[::-1]
    assert against[2] == [("dapo", "grpo", "12.0 [12.0, 12.0]", against[2][0][3])]
    picture = picture_of(plan, outcomes, found, tmp_path / "many.png")
    assert picture is not None
    assert picture.stat().st_size > 10_000
    assert "Left out: none." in markdown(found, "Many", picture.name, "Left out: none.")


def test_an_arm_with_a_failed_run_is_named_and_has_no_numbers() -> None:
    outcomes = [made("grpo", i, 0.7) for i in range(3)] + [made("dapo", i, 0.7) for i in range(2)]
    found = summarise(PLAN, outcomes, {"dapo on t, seed 2": "the gradient norm is nan"})
    assert list(found["results"]) == ["grpo"]
    assert "dapo on t, seed 2: the gradient norm is nan" in markdown(found, "Title")


def test_runs_that_did_not_start_alike_are_not_compared() -> None:
    outcomes = [made("grpo", i, 0.7) for i in range(3)] + [made("dapo", i, 0.7, start=0.4) for i in range(3)]
    with pytest.raises(TrainingError, match="did not start alike"):
        summarise(PLAN, outcomes, {})


def test_curves_meet_on_a_grid() -> None:
    grid = on_grid([made("grpo", 0, 0.7)], "tokens", [0.0, 50.0, 200.0, 300.0])
    assert grid.tolist() == [[0.5, pytest.approx(0.55), 0.7, 0.7]]
