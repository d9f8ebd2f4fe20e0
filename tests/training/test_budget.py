"""Runs that end by what they spent, evaluations spread over them, and both across a resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import metrics, quick
from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.method import Method
from unipo.training import loop

OFF: dict[str, Any] = {"eval.before": False, "eval.after": False, "sampling.max_tokens": 8}


def evaluations(run: Path) -> list[tuple[int, str, float]]:
    lines = (run / "evaluations.jsonl").read_text().splitlines()
    return [(e["step"], e["when"], e["accuracy"]) for e in map(json.loads, lines)]


def spent(run: Path) -> list[float]:
    return [m["tokens/sampled"] for m in metrics(run)]


def test_a_budget_of_tokens_ends_the_run_with_the_step_that_goes_over(tmp_path: Path) -> None:
    result = quick(tmp_path / "run", steps=50, **OFF, **{"budget.tokens": 600})
    assert result.steps == len(spent(tmp_path / "run")) < 50
    assert sum(spent(tmp_path / "run")[:-1]) < 600 <= sum(spent(tmp_path / "run"))


def test_steps_end_the_run_where_they_come_first(tmp_path: Path) -> None:
    assert quick(tmp_path / "run", steps=1, **OFF, **{"budget.tokens": 100_000, "budget.seconds": 1e6}).steps == 1


@pytest.mark.slow
def test_what_was_spent_counts_across_a_resume(tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    quick(whole, steps=50, **OFF, **{"budget.tokens": 600})
    quick(parted, steps=1, **OFF, **{"budget.tokens": 600})
    quick(parted, steps=50, resume=True)
    assert spent(parted) == spent(whole)


def test_evaluations_are_spread_evenly(tmp_path: Path) -> None:
    quick(tmp_path / "run", steps=6, **{"sampling.max_tokens": 8, "eval.points": 2, "eval.prompts": 2})
    assert [(s, w) for s, w, _ in evaluations(tmp_path / "run")] == [
        *((0, "before"), (2, "during"), (4, "during"), (6, "after"))
    ]


def test_an_evaluation_that_will_be_done_again_is_cut_from_the_log(tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    settings = {"sampling.max_tokens": 8, "eval.points": 3, "eval.prompts": 2, "save.every": 1, "save.keep": 0}
    quick(whole, steps=4, **settings)
    quick(parted, steps=4, **settings)
    for step in (3, 4):  # as if it had been killed after the evaluation of step 3, before its checkpoint
        shutil.rmtree(parted / "checkpoints" / f"step-{step:06d}")
    quick(parted, steps=4, resume=True)
    assert evaluations(parted) == evaluations(whole)
    assert [s for s, _, _ in evaluations(whole)] == [0, 1, 2, 3, 4]


def test_a_negative_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="budget cannot be negative"):
        quick(tmp_path / "run", **{"budget.tokens": -1})


def test_a_methods_schedule_ends_with_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    judge = loop.judge

    def spy(method: Method, batch: Batch, scorer: Any) -> Batch:
        seen.append((batch.step, batch.total_steps))
        return judge(method, batch, scorer)

    monkeypatch.setattr(loop, "judge", spy)
    quick(tmp_path / "run", steps=500, **OFF, **{"budget.tokens": 1500})
    steps = len(seen)
    assert seen[0] == (1, 500)
    assert 4 < steps < 100
    assert seen[-1][0] == steps
    assert all(abs(total - steps) <= 0.35 * steps for _, total in seen[1:])
    assert abs(seen[-1][1] - steps) <= 1
    seen.clear()
    quick(tmp_path / "plain", steps=3, **OFF)
    assert seen == [(1, 3), (2, 3), (3, 3)]
