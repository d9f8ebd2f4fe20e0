from __future__ import annotations

import itertools

import pytest
import torch

from unipo.evaluate.statistics import (
    area_under_curve,
    bootstrap,
    improvement,
    interquartile_mean,
    mean_score,
    student_cdf,
    student_quantile,
    tail,
)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def test_interquartile_mean_by_hand() -> None:
    # 5 values: floor(5/4) = 1 is left out at either end
    assert float(interquartile_mean(column(0.0, 1.0, 2.0, 3.0, 100.0))) == pytest.approx(2.0)
    # 2 runs x 4 tasks: 8 values, 2 left out at either end, the middle is 3, 4, 5, 6
    scores = torch.tensor([[1.0, 8.0, 3.0, 6.0], [2.0, 7.0, 4.0, 5.0]], dtype=torch.float64)
    assert float(interquartile_mean(scores)) == pytest.approx(4.5)
    assert float(interquartile_mean(column(1.0, 5.0, 6.0))) == pytest.approx(4.0)  # three values: none is left out


def test_interquartile_mean_is_the_trimmed_mean_that_rliable_takes() -> None:
    stats = pytest.importorskip("scipy.stats")
    for runs, tasks in ((3, 1), (5, 4), (10, 7)):
        scores = torch.rand(runs, tasks, generator=torch.Generator().manual_seed(runs), dtype=torch.float64)
        assert float(interquartile_mean(scores)) == pytest.approx(stats.trim_mean(scores.numpy(), 0.25, axis=None))


def test_improvement_by_hand() -> None:
    # 2 > 1, 2 < 3, 2 = 2 (half), 4 beats all three: (1 + 0 + 1/2 + 3) / 6
    assert float(improvement(column(2.0, 4.0), column(1.0, 3.0, 2.0))) == pytest.approx(4.5 / 6)
    # averaged over tasks: always better on the one, always worse on the other
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    assert float(improvement(x, 1 - x)) == 0.5
    assert float(improvement(column(1.0, 2.0), column(1.0, 2.0))) == 0.5


def test_improvement_is_the_mann_whitney_statistic_that_rliable_takes() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 6, (7, 3), generator=generator).to(torch.float64)
    y = torch.randint(0, 6, (5, 3), generator=generator).to(torch.float64)
    each = [stats.mannwhitneyu(x[:, t].numpy(), y[:, t].numpy(), alternative="greater")[0] / 35 for t in range(3)]
    assert float(improvement(x, y)) == pytest.approx(sum(each) / 3)


def test_one_is_what_the_other_is_not() -> None:
    x, y = torch.rand(6, 2, dtype=torch.float64), torch.rand(4, 2, dtype=torch.float64)
    assert float(improvement(x, y) + improvement(y, x)) == pytest.approx(1.0)


def test_mean_weighs_tasks_alike() -> None:
    assert float(mean_score(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))) == pytest.approx(0.75)


def test_area_by_hand() -> None:
    assert area_under_curve([0, 10], [0.2, 0.6]) == pytest.approx(0.4)
    # 0..1: 0.5 wide 1; 1..3: 1 wide 2; over 3
    assert area_under_curve([0, 1, 3], [0.0, 1.0, 1.0]) == pytest.approx(2.5 / 3)
    assert area_under_curve([5, 6, 9], [0.7, 0.7, 0.7]) == pytest.approx(0.7)


@pytest.mark.parametrize(("x", "y"), [([0], [1]), ([0, 1], [1]), ([0, 0], [1, 2]), ([0, 2, 1], [1, 1, 1])])
def test_a_curve_that_is_none_is_refused(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="curve"):
        area_under_curve(x, y)


def test_bootstrap_of_three_by_hand() -> None:
    # All 27 resamples of 0, 3, 6: the widened tail is below 1/27, so the ends are the extremes.
    found = bootstrap(mean_score, column(0.0, 3.0, 6.0))
    assert (found.value, found.low, found.high) == (3.0, 0.0, 6.0)
    # Unwidened: 2.5 % of 27 resamples is the place 0.65 of 0..26, nearest 1: the mean of 0, 0, 3 is 1.
    plain = bootstrap(mean_score, column(0.0, 3.0, 6.0), widened=False)
    assert (plain.low, plain.high) == (1.0, 5.0)


def test_a_small_sample_is_enumerated() -> None:
    values = (0.1, 0.4, 0.45, 0.8)
    means = sorted(sum(c) / 4 for c in itertools.product(values, repeat=4))
    found = bootstrap(mean_score, column(*values), widened=False)
    at = round(0.025 * (len(means) - 1))
    assert found.low == pytest.approx(means[at])
    assert found.high == pytest.approx(means[-1 - at])
    assert bootstrap(mean_score, column(*values), seed=1) == bootstrap(mean_score, column(*values), seed=2)


def test_runs_are_resampled_within_their_task() -> None:
    # Between tasks there is a gulf, within them nothing: resampling within tasks leaves no uncertainty.
    scores = torch.tensor([[0.0, 1.0]] * 5, dtype=torch.float64)
    found = bootstrap(mean_score, scores)
    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)


def test_one_run_has_no_interval() -> None:
    found = bootstrap(mean_score, column(0.7))
    assert (found.value, found.low, found.high) == (0.7, None, None)


def test_the_same_sample_gives_the_same_interval() -> None:
    scores = torch.rand(9, 3, dtype=torch.float64)
    assert bootstrap(mean_score, scores) == bootstrap(mean_score, scores)


def test_student_by_table() -> None:
    for freedom, value in ((1, 12.7062), (2, 4.30265), (4, 2.77645), (7, 2.36462), (9, 2.26216), (120, 1.97993)):
        assert student_quantile(0.975, freedom) == pytest.approx(value, abs=1e-4)
    assert student_cdf(0.0, 3) == 0.5
    assert student_cdf(1.0, 1) == pytest.approx(0.75)  # Cauchy
    with pytest.raises(ValueError, match="degree of freedom"):
        student_quantile(0.975, 0)


def test_the_tail_by_hand() -> None:
    # Five runs: Phi(-2.77645 sqrt(5/4)) = Phi(-3.10416) = 0.000954
    assert tail([5], 1) == pytest.approx(0.000954, abs=1e-6)
    assert tail([1000], 1) == pytest.approx(0.025, abs=2e-4)
    assert tail([5], 4) > tail([5], 1)


def test_the_widened_interval_covers_what_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    covered, repeats = 0, 400
    for _ in range(repeats):
        sample = torch.randn(8, 1, generator=generator, dtype=torch.float64)
        wide = bootstrap(mean_score, sample, draws=4000)
        plain = bootstrap(mean_score, sample, draws=4000, widened=False)
        assert wide.low is not None
        assert wide.high is not None
        assert plain.low is not None
        assert plain.high is not None
        assert wide.low < plain.low < plain.high < wide.high
        covered += wide.low <= 0 <= wide.high
    assert 0.90 <= covered / repeats <= 0.98
