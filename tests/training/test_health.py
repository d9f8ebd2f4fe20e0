"""Each warning is given for what it names, and not for a run in which all is well."""

from __future__ import annotations

import math
import re

import pytest

from unipo.training.health import health
from unipo.training.progress import Display
from unipo.training.sparkline import sparkline


def found(evaluations: list[dict[str, float]] | None = None, **series: list[float | None]) -> list[str]:
    return [a.name for a in health({name.replace("__", "/"): x for name, x in series.items()}, evaluations or [])]


def test_a_run_in_which_all_is_well_has_no_warning() -> None:
    steps = range(40)
    assert (
        found(
            entropy=[1.0 - 0.01 * k for k in steps],
            length__mean=[20.0 + 0.2 * k for k in steps],
            groups__zero_variance=[0.4] * 40,
            gap__mean=[1e-6] * 40,
            ratio__q99=[1.2] * 40,
            ratio__q01=[0.8] * 40,
            truncated=[0.1] * 40,
            unscored=[0.0] * 40,
        )
        == []
    )


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("entropy_collapse", {"entropy": [1.0] * 10 + [0.1] * 10}),
        ("no_signal", {"groups__zero_variance": [0.2] * 10 + [0.9] * 10}),
        ("lengths_exploding", {"length__mean": [20.0] * 10 + [60.0] * 10}),
        ("truncation", {"truncated": [0.5] * 3}),
        ("sampler_gap", {"gap__mean": [0.05]}),
        ("ratio_tails", {"ratio__q99": [3.0]}),
        ("ratio_tails", {"ratio__q01": [0.3]}),
        ("ratio_tails", {"clip_fraction": [0.4]}),
        ("unscored", {"unscored": [0.2]}),
        ("not_finite", {"loss": [0.1, math.nan]}),
        ("not_finite", {"grad_norm": [math.inf]}),
    ],
)
def test_a_warning_is_given_for_what_it_names(name: str, series: dict[str, list[float | None]]) -> None:
    assert found(**series) == [name]


def test_ends_are_not_compared_before_they_are_apart() -> None:
    assert found(entropy=[1.0] * 9 + [0.1] * 10) == []
    assert found(entropy=[1.0] * 10 + [0.1] * 10) == ["entropy_collapse"]


def test_entropy_is_called_collapsed_below_a_fifth_of_its_beginning() -> None:
    assert found(entropy=[1.0] * 10 + [0.21] * 10) == []
    assert found(entropy=[1.0] * 10 + [0.19] * 10) == ["entropy_collapse"]


def test_what_was_wrong_long_ago_is_not_said_again() -> None:
    assert found(groups__zero_variance=[1.0] * 30 + [0.3] * 10) == []


def test_steps_without_a_value_are_passed_over() -> None:
    assert found(groups__zero_variance=[None] * 8 + [0.9, 0.9]) == ["no_signal"]
    assert found(groups__zero_variance=[None] * 10) == []


def test_held_out_accuracy_below_the_interval_of_its_best_is_said_with_the_reward() -> None:
    evaluations = [
        {"step": 0, "accuracy": 0.5, "low": 0.4, "high": 0.6},
        {"step": 20, "accuracy": 0.7, "low": 0.6, "high": 0.8},
        {"step": 40, "accuracy": 0.5, "low": 0.4, "high": 0.6},
    ]
    series = {"step": [float(k + 1) for k in range(40)], "reward/mean": [k / 40 for k in range(40)]}
    (alarm,) = health(series, evaluations)
    assert alarm.name == "overfitting"
    assert alarm.title == "Reward rises, held-out accuracy falls"
    # steps 11 to 20 have a mean of 14.5 / 40, the last ten of 34.5 / 40
    assert re.search(r"from 0\.36[23] to 0\.86[23]", alarm.text)
    falling = dict(series) | {"reward/mean": [-k / 40 for k in range(40)]}
    assert [a.title for a in health(falling, evaluations)] == ["Held-out accuracy falls"]


def test_held_out_accuracy_within_the_interval_is_no_warning() -> None:
    evaluations = [
        {"step": 0, "accuracy": 0.7, "low": 0.5, "high": 0.9},
        {"step": 9, "accuracy": 0.6, "low": 0.4, "high": 0.8},
    ]
    assert health({}, evaluations) == []


def test_a_sparkline_goes_from_the_lowest_bar_to_the_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], width=2) == "▁█"
    assert sparkline([2.0, 2.0]) == "▄▄"
    assert sparkline([0.0, None, math.nan, 1.0]) == "▁  █"
    assert sparkline([]) == "" == sparkline([None])


def test_a_run_says_each_warning_once_when_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display()
    display.start(40, 0)
    for step in range(1, 41):
        display.step(step, {"entropy": 1.0 if step <= 20 else 0.01, "reward/mean": 0.5})
    said = [line for line in capsys.readouterr().err.splitlines() if "warning:" in line]
    # the mean of the last ten is below a fifth of 1 when nine of them are 0.01: (1 + 9 * 0.01) / 10 = 0.109
    assert len(said) == 1
    assert said[0].startswith("step 29: warning: Entropy is collapsing. It fell from 1 to 0.109")
