from __future__ import annotations

import pytest
import torch

from unipo.evaluate import accuracy
from unipo.evaluate.accuracy import Spread, accuracy_interval, cluster_bootstrap, spread, wilson

# Ten problems each that are never, half of the time and always solved.
BETWEEN = float(torch.tensor([0.0] * 10 + [0.5] * 10 + [1.0] * 10, dtype=torch.float64).var())
THIRDS = Spread(BETWEEN, within=0.25 / 3)


def test_more_samples_stop_helping_for_new_problems() -> None:
    errors = [round(THIRDS.error(30, n), 4) for n in (1, 16, 64)]
    assert errors == [0.0923, 0.0769, 0.0761]


def test_more_samples_always_help_for_the_same_problems() -> None:
    errors = [round(THIRDS.error_fixed(30, n), 4) for n in (1, 16, 64)]
    assert errors == [0.0527, 0.0132, 0.0066]


def test_counting_every_sample_as_independent_is_too_sure_by_far() -> None:
    naive = (0.25 / (30 * 64)) ** 0.5
    assert naive == pytest.approx(0.0114, abs=1e-4)
    assert THIRDS.error(30, 64) / naive == pytest.approx(6.7, abs=0.05)


def test_spread_by_hand() -> None:
    # Means 1/2 and 1; variances of single samples 1/2 and 0, mean 1/4; variance of the means 1/8, less (1/4)/2.
    found = spread([[1.0, 0.0], [1.0, 1.0]])
    assert found == Spread(between=0.0, within=0.25)
    found = spread([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert found is not None
    assert found.within == pytest.approx(1 / 6)
    assert found.between == pytest.approx(0.25 - 1 / 12)
    # The two together give back the usual standard error over problems.
    assert found.error(3, 2) == pytest.approx((0.25 / 3) ** 0.5)


def test_spread_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(2)
    mu = torch.tensor([0.0, 0.5, 1.0, 0.2, 0.9], dtype=torch.float64)
    parts = [
        spread((torch.rand(5, 4, generator=generator, dtype=torch.float64) < mu[:, None]).double().tolist())
        for _ in range(4000)
    ]
    within = sum(p.within for p in parts if p) / len(parts)
    assert within == pytest.approx(float((mu * (1 - mu)).mean()), abs=0.003)
    between = sum(p.between for p in parts if p) / len(parts)
    assert between == pytest.approx(float(mu.var()), abs=0.005)


def test_one_sample_each_cannot_tell_the_two_apart() -> None:
    assert spread([[1.0], [0.0]]) is None
    assert spread([[1.0, 0.0]]) is None


def test_problems_solved_always_or_never_are_one_trial_each() -> None:
    found = accuracy_interval([[1.0] * 8] * 20)
    assert (found.low, found.high) == wilson(20, 20)
    assert found.low == pytest.approx(20 / (20 + 1.959963984540054**2))


def test_problems_that_are_all_alike_are_not_known_exactly() -> None:
    found = accuracy_interval([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    # z^2 = 3.8415: 1/2 +- 1.96 sqrt(1/12 + z^2/36) / (1 + z^2/3)
    assert (found.accuracy, found.low, found.high) == (
        0.5,
        pytest.approx(0.1253, abs=1e-4),
        pytest.approx(0.8747, abs=1e-4),
    )
    # 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1
    assert accuracy_interval([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]]).low < 0.1
    outside = accuracy_interval([[2.0], [2.0]])
    assert (outside.low, outside.high) == (2.0, 2.0)  # not a share


def test_the_bootstrap_in_pieces_is_the_bootstrap_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    means = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = cluster_bootstrap(means, draws=500)
    monkeypatch.setattr(accuracy, "HELD", 777)
    assert cluster_bootstrap(means, draws=500) == whole
