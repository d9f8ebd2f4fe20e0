"""reasoning-gym: its datasets by name, its own scorers, and no code of the model's run by them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from unipo.errors import ConfigError, RewardError
from unipo.tasks.check import check_task
from unipo.tasks.guard import EVALUATED, PARSED, may_be_scored
from unipo.tasks.task import Sample

pytest.importorskip("reasoning_gym")

from unipo.tasks.reasoning import ReasoningReward, reasoning_task
from unipo.tasks.reasoning_rows import PROCESS_DEPENDENT, draw_rows, reasoning_gym_names

NAMES = (
    *("chain_sum", "basic_arithmetic", "leg_counting", "spell_backward", "number_sorting", "letter_counting"),
    *("gcd", "countdown", "prime_factorization", "base_conversion", "n_queens", "rearc", "spiral_matrix"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_dataset_by_name_keeps_every_promise_of_a_task(name: str) -> None:
    report = check_task(
        reasoning_task(name, size=8, heldout=4), rebuild=lambda: reasoning_task(name, size=8, heldout=4)
    )
    assert (report.train, report.heldout) == (8, 4)
    assert "the right answer scores 1 (12 checked)" in report.claims


def test_rows_are_json_and_score_the_same_after_the_journey() -> None:
    for name in ("rearc", "chain_sum", "isomorphic_strings"):
        task = reasoning_task(name, size=3, heldout=0)
        samples = [Sample("", e.answer or "", row=json.loads(json.dumps(e.row))) for e in task.train]
        assert ReasoningReward(name)(samples).score == [1.0, 1.0, 1.0], name


def test_options_reach_the_dataset_and_unknown_ones_suggest_the_nearest() -> None:
    task = reasoning_task("chain_sum", size=10, heldout=0, min_terms=5, max_terms=5)
    assert {e.row["metadata"]["num_terms"] for e in task.train} == {5}
    with pytest.raises(ConfigError, match="did you mean 'min_terms'"):
        reasoning_task("chain_sum", min_term=5)
    with pytest.raises(ConfigError, match="did you mean 'chain_sum'"):
        reasoning_task("chainsum")
    with pytest.raises(ConfigError, match="reasoning-gym's chain_sum refuses"):
        reasoning_task("chain_sum", min_terms=9, max_terms=2)


def test_asking_for_more_questions_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match="gave only"):
        reasoning_task("gcd", size=50, heldout=5, min_value=1, max_value=3, min_numbers=2, max_numbers=2)


def test_seeds_of_the_two_sides_are_disjoint_and_held_out_does_not_change_with_size() -> None:
    small, large = (reasoning_task("gcd", size=n, heldout=5) for n in (5, 40))
    assert [e.prompt for e in small.heldout] == [e.prompt for e in large.heldout]

    def seeds(side: Any) -> set[int]:
        return {e.row["seed"] + e.row["index"] for e in side}

    assert not seeds(large.train) & seeds(large.heldout)
    assert reasoning_task("gcd", size=5, heldout=5, seed=1).train != small.train


def test_instruction_and_system_frame_the_question() -> None:
    bare = reasoning_task("gcd", size=1, heldout=0, instruction="").train[0]
    assert bare.prompt == bare.row["question"]
    asked = reasoning_task("gcd", size=1, heldout=0, system="Think.").train[0]
    assert asked.prompt[0] == {"role": "system", "content": "Think."}
    assert asked.prompt[1]["content"].startswith(bare.row["question"] + "\n\n")  # type: ignore[index]


def test_a_composite_scores_each_part_with_its_own_scorer() -> None:
    parts = [{"name": "gcd", "weight": 1, "config": {}}, {"name": "countdown", "weight": 1, "config": {}}]
    task = reasoning_task("composite", size=20, heldout=4, datasets=parts)
    assert {e.row["metadata"]["source_dataset"] for e in task.train} == {"gcd", "countdown"}
    assert check_task(task).spelling == "{answer}"
    both = [{"name": n, "weight": 1, "config": {}} for n in ("rearc", "word_ladder")]
    with pytest.raises(ConfigError, match="make two tasks"):
        reasoning_task("composite", size=2, heldout=0, datasets=both)


def test_partial_credit_of_the_dataset_comes_through() -> None:
    example = reasoning_task("spell_backward", size=1, heldout=0, min_word_len=6).train[0]
    right = example.answer or ""
    scores = ReasoningReward("spell_backward", {"min_word_len": 6})(
        [Sample("", t, row=example.row) for t in (right, f"<answer>{right}</answer>", right[::-1] + "q", "")]
    )
    assert scores.score[:2] == [1.0, 1.0]
    assert scores.score[3] == 0.0
    assert scores.total == scores.score
    assert scores.extracted[3] is None


def test_a_scorer_that_raises_is_counted_and_scores_no_answer() -> None:
    task = reasoning_task("prime_factorization", size=2, heldout=0)
    samples = [Sample("", "two times two", row=e.row) for e in task.train]
    scores = task.reward(samples) if task.reward else None
    assert scores is not None
    assert (scores.score, scores.events) == ([0.0, 0.0], {"scorer raised": 2})


def test_a_row_of_another_task_or_version_is_an_error_and_not_a_zero() -> None:
    row = dict(reasoning_task("gcd", size=1, heldout=0).train[0].row)
    for wrong, complaint in (
        ({"question": "q"}, "needs a row of its own task"),
        ({**row, "dataset": "lcm"}, "given a row of 'lcm'"),
        ({**row, "question": "another"}, "another version of reasoning-gym"),
    ):
        with pytest.raises(RewardError, match=complaint):
            ReasoningReward("gcd")([Sample("", "1", row=wrong)])


# -- what the model wrote is not run -------------------------------------------------------------
def _first(name: str) -> tuple[ReasoningReward, Mapping[str, Any]]:
    return ReasoningReward(name), reasoning_task(name, size=1, heldout=0).train[0].row


@pytest.mark.parametrize("name", sorted(EVALUATED | PARSED))
def test_code_in_an_answer_is_not_run_by_the_scorer(name: str, tmp_path: Path) -> None:
    reward, row = _first(name)
    trace = tmp_path / "ran"
    code = f"open({str(trace)!r}, 'w')"
    scores = reward([Sample("", t, row=row) for t in (code, "[" + code + "]", "9**9**9**9**9", "exit()")])
    assert not trace.exists()
    assert all(v is not None and v < 0.1 for v in scores.score)
    assert scores.events["answer refused"] == 4


def test_literals_keep_the_partial_credit_that_evaluating_them_gives() -> None:
    reward, row = _first("spiral_matrix")
    listed = str(row["answer"].split())
    assert reward([Sample("", listed, row=row)]).score == [0.1]


@pytest.mark.parametrize(
    ("answer", "allowed"),
    [
        ("94*4 - 61 - 6", True),
        ("x**3/3 + sin(2*x)/2 + C", True),
        ("(x + 1)**2 * exp(3*x)", True),
        ("-log(x)*sqrt(x)", True),
        ("2**99", True),
        ("2**101", False),
        ("((2**99)**99)**99", False),
        ("2**(2**9)", False),
        ("x.__class__", False),
        ("open(1)", False),
        ("factorial(9)", False),
        ("Integral(x**2, x)", False),
        ("[1 for x in y]", False),
        ("x if x else y", False),
        ("99999999999999999999", False),
        ("'a'", False),
        ("lambda: 1", False),
    ],
)
def test_the_guard_lets_tame_expressions_through_and_nothing_else(answer: str, allowed: bool) -> None:
    assert may_be_scored("simple_integration", answer, {"answer": ""}) is allowed


def test_the_answer_of_every_guarded_dataset_passes_its_guard() -> None:
    for name in sorted(EVALUATED | PARSED):
        for row in draw_rows(name, {}, 0, 20, 0)[1]:
            assert may_be_scored(name, row["answer"], row), (name, row["answer"])


# -- the same in every process -------------------------------------------------------------------
@pytest.mark.parametrize("name", ["isomorphic_strings", "list_functions"])
def test_datasets_that_depend_on_the_process_are_drawn_alike_in_every_one(name: str) -> None:
    assert name in PROCESS_DEPENDENT
    program = f"import json; from unipo.tasks.reasoning_rows import draw_rows; print(json.dumps(draw_rows({name!r}, {{}}, 0, 3, 1)))"
    seen = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        seen.add(done.stdout.strip().splitlines()[-1])
    assert len(seen) == 1


def test_an_error_in_the_child_process_reads_like_one_here() -> None:
    with pytest.raises(ConfigError, match="gave only"):
        reasoning_task(
            "polynomial_multiplication",
            size=30,
            heldout=0,
            min_terms=2,
            max_terms=2,
            min_value=1,
            max_value=1,
            max_degree=1,
            max_polynomials=2,
            variables=["x"],
            operators=["+"],
        )


def test_the_names_are_those_of_the_installed_package() -> None:
    names = reasoning_gym_names()
    assert set(NAMES) <= set(names)
    assert set(names) >= PROCESS_DEPENDENT | EVALUATED | PARSED


def test_an_item_that_the_generator_fails_to_make_is_left_out_with_a_warning() -> None:
    # Item 717 of the training side divides by zero inside reasoning-gym.
    with pytest.warns(UserWarning, match=r"failed to make \d+ items .*ZeroDivisionError"):
        task = reasoning_task("basic_arithmetic", size=1000, heldout=0)
    assert len(task.train) == 1000
