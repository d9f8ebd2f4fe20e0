from __future__ import annotations

from pathlib import Path

import pytest

from unipo.api import train
from unipo.compare.outcome import curve
from unipo.errors import CheckpointError
from unipo.reproduce.weights import mean_score, pass_rate, sampled_scores


def test_scores_are_those_of_the_runs_own_last_evaluation(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {"optim": {"learning_rate": 1e-3}, "sampling": {"max_tokens": 48}, "eval": {"prompts": 24}}
    train(method="reinforce", steps=2, prompts=8, run=str(run), log={"progress": False}, **settings)
    scores = sampled_scores(run, "scratchpad", 24)
    assert [len(group) for group in scores] == [1] * 24
    assert mean_score(scores) == pytest.approx(curve(run)[-1].score)
    several = sampled_scores(run, "scratchpad", 3, samples=4)
    assert [len(group) for group in several] == [4, 4, 4]


def test_a_run_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        sampled_scores(tmp_path, "scratchpad")


def test_means_and_pass_rates_by_hand() -> None:
    scores = [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
    assert mean_score(scores) == pytest.approx(1 / 3)
    assert pass_rate(scores, 1) == pytest.approx(1 / 3)
    assert pass_rate(scores, 2) == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert pass_rate(scores, 4) == pytest.approx(2 / 3)
