from __future__ import annotations

import pytest

from unipo.evaluate.measure import Answered, Problem, estimates, values


def problem(place: int, *responses: tuple[float, str | None]) -> Problem:
    return Problem(place, "?", None, tuple(Answered("", score, answer, 3) for score, answer in responses))


def test_estimates_by_hand() -> None:
    found = estimates(
        [
            problem(0, (1.0, "7"), (0.0, "8"), (0.0, "8"), (1.0, "7")),
            problem(1, (0.0, "1"), (0.0, None), (0.0, "2"), (0.0, "3")),
        ]
    )
    assert found["accuracy"]["accuracy"] == 0.25
    assert list(found["pass"]) == ["1", "2", "4"]
    assert found["pass"]["2"]["value"] == pytest.approx((5 / 6) / 2)  # both wrong in 1 of 6 pairs
    assert found["pass_hat"]["2"]["value"] == pytest.approx((1 / 6) / 2)
    assert found["majority"]["4"]["value"] == pytest.approx(0.5 / 2)  # two votes each
    assert found["length"] == 3
    # Samples: variances 1/3 and 0; over new samples sqrt((1/6) / 8), over new problems sqrt(Var(1/2, 0) / 2).
    assert found["standard_error"]["samples"] == pytest.approx((1 / 48) ** 0.5)
    assert found["standard_error"]["problems"] == pytest.approx((0.125 / 2) ** 0.5)


def test_one_sample_each_leaves_the_standard_errors_open() -> None:
    found = estimates([problem(0, (1.0, "7")), problem(1, (0.0, "8"))])
    assert found["standard_error"] == {"problems": None, "samples": None}
    assert found["majority"]["1"]["value"] == 0.5


def test_graded_scores_count_in_the_average_and_are_right_from_one_up() -> None:
    of = values([problem(0, (0.5, None), (1.0, None)), problem(1, (0.9, None), (0.0, None))])
    assert of["average"] == {2: [0.75, 0.45]}
    assert of["pass"][2] == [1.0, 0.0]
    assert "majority" not in of


def test_no_majority_where_the_reward_judges_more_than_the_answer() -> None:
    assert "majority" not in estimates([problem(0, (1.0, "7"), (0.0, "7"))])
