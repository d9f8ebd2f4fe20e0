from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from unipo.reproduce.logs import dropped, entropy_at, fifths, late, late_completions


def written(folder: Path, metrics: Sequence[dict[str, Any]], scores: dict[int, float]) -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    rows = [{"step": s, "accuracy": a} for s, a in scores.items()]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_late_is_the_mean_of_the_last_share(tmp_path: Path) -> None:
    run = written(tmp_path, [{"step": i, "x": float(i)} for i in range(1, 11)] + [{"step": 11}], {})
    assert late(run, "x") == 9.5
    assert late(run, "x", share=0.01) == 10.0
    assert late(run, "nothing") == 0.0


def test_late_completions_are_those_of_the_last_share_of_the_steps(tmp_path: Path) -> None:
    def steps(last: int, share: float = 0.2) -> list[int]:
        rows = [{"step": s} for s in range(1, last + 1) for _ in range(2)]
        (tmp_path / "completions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        return [r["step"] for r in late_completions(tmp_path, share)]

    assert steps(10) == [9, 9, 10, 10]
    assert steps(14) == [13, 13, 14, 14]  # whole steps of a share, rounded down
    assert steps(3) == [3, 3]
    assert steps(4, share=0.5) == [3, 3, 4, 4]
    assert all(int(0.2 * n) == n // 5 for n in range(10_000))


def test_fifths_are_of_the_steps_and_the_last_is_late(tmp_path: Path) -> None:
    def steps(last: int) -> list[list[int]]:
        rows = [{"step": s} for s in range(1, last + 1)]
        (tmp_path / "completions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        return [[r["step"] for r in part] for part in fifths(tmp_path)]

    assert steps(10) == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    assert fifths(tmp_path)[-1] == late_completions(tmp_path)
    assert steps(2) == [[1], [2]]  # fifths without a step are left out


def test_what_a_gate_drops_is_the_mean_over_the_run(tmp_path: Path) -> None:
    assert dropped(written(tmp_path, [{"step": i, "mismatch/dropped": i / 10} for i in (1, 2, 6)], {})) == {
        "dropped": pytest.approx(0.3)
    }
    assert dropped(written(tmp_path, [{"step": 1}], {})) == {"dropped": 0.0}


def test_entropy_at_a_score(tmp_path: Path) -> None:
    metrics = [{"step": i, "entropy": 1.0 - i / 100} for i in range(1, 41)]
    run = written(tmp_path, metrics, {0: 0.3, 20: 0.6, 40: 0.9})
    # With a window of 3: at step 20 the mean of steps 17 to 23 is 0.8, at step 40 that of 37 to 40 is 0.615.
    assert entropy_at(run, 0.6, 3) == pytest.approx(0.8)
    assert entropy_at(run, 0.75, 3) == pytest.approx((0.8 + 0.615) / 2)
    assert entropy_at(run, 0.95, 3) == pytest.approx(0.615)  # never reached: at the best score
    assert entropy_at(run, 0.2, 3) == pytest.approx(0.98)  # reached from the start: steps 1 to 3
    assert entropy_at(run, 0.6) == pytest.approx(0.8)
