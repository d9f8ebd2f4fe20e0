from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from random import Random

import pytest
import torch

from unipo.evaluate import paired
from unipo.evaluate.paired import MCNEMAR, PERMUTATION, SAMPLED, compare, difference, sign_flip_test


def test_mcnemar_by_hand() -> None:
    # Eight problems only the first model solves, two only the second: 2 (1 + 10 + 45) / 2^10.
    a = [1.0] * 8 + [0.0] * 2 + [1.0] * 5
    b = [0.0] * 8 + [1.0] * 2 + [1.0] * 5
    p, name = sign_flip_test(a, b)
    assert name == MCNEMAR
    assert p == pytest.approx(0.109375, abs=1e-15)


def test_sign_flips_by_hand() -> None:
    # Differences in halves: 2, 1, 1. Of eight sign patterns only all-plus and all-minus reach 4.
    p, name = sign_flip_test([1.0, 0.5, 0.5], [0.0, 0.0, 0.0], samples=2)
    assert (p, name) == (0.25, PERMUTATION)
    # 2, -1, 1 add up to 2: the sums are 4, 2, 2, 0, 0, -2, -2, -4.
    assert sign_flip_test([1.0, 0.0, 0.5], [0.0, 0.5, 0.0], samples=2)[0] == 0.75


def test_sign_flips_equal_enumeration() -> None:
    random = Random(3)
    for _ in range(20):
        n = random.randint(1, 9)
        steps = [random.randint(-4, 4) for _ in range(n)]
        seen = sum(
            abs(sum(s * d for s, d in zip(signs, steps, strict=True))) >= abs(sum(steps))
            for signs in product((1, -1), repeat=n)
        )
        p, _ = sign_flip_test([d / 4 for d in steps], [0.0] * n, samples=4)
        assert p == pytest.approx(float(Fraction(seen, 2**n)), abs=1e-14)


def test_equal_models_have_p_one_and_swapping_them_changes_nothing() -> None:
    a, b = [1.0, 0.0, 0.5, 0.25], [0.5, 0.0, 0.5, 1.0]
    assert sign_flip_test(a, a, 4)[0] == 1.0
    assert sign_flip_test(a, b, 4) == sign_flip_test(b, a, 4)


def test_many_problems_agree_with_the_binomial_tail() -> None:
    n, wins = 400, 225
    p, _ = sign_flip_test([1.0] * wins + [0.0] * (n - wins), [0.0] * wins + [1.0] * (n - wins))
    tail = Fraction(2 * sum(math.comb(n, i) for i in range(n - wins + 1)), 2**n)
    assert p == pytest.approx(float(tail), rel=1e-10)


def test_graded_scores_are_tested_by_sampled_flips_that_agree_with_the_exact_chance() -> None:
    a, b = [0.31, 0.52, 0.77, 0.13], [0.1, 0.2, 0.3, 0.2]
    p, name = sign_flip_test(a, b)
    gap = [x - y for x, y in zip(a, b, strict=True)]
    sums = [abs(sum(s * d for s, d in zip(signs, gap, strict=True))) for signs in product((1, -1), repeat=4)]
    exact = sum(s >= abs(sum(gap)) - 1e-12 for s in sums) / 16
    assert name == SAMPLED
    assert p == pytest.approx(exact, abs=0.005)
    assert sign_flip_test(a, b) == (p, name)


def test_work_beyond_the_limit_is_sampled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "EXACT_WORK", 10)
    p, name = sign_flip_test([1.0] * 8 + [0.0] * 2, [0.0] * 8 + [1.0] * 2)
    assert name == SAMPLED
    assert p == pytest.approx(0.109375, abs=0.005)


def test_under_the_null_small_p_are_no_commoner_than_they_say() -> None:
    random = Random(1)
    found = []
    for _ in range(400):
        sides = [[sum(random.random() < p for _ in range(2)) / 2 for p in [0.2, 0.5, 0.8] * 10] for _ in range(2)]
        found.append(sign_flip_test(*sides, samples=2)[0])
    assert sum(p <= 0.05 for p in found) / len(found) <= 0.075


def test_pairing_sees_what_separate_intervals_do_not() -> None:
    # Problems range from hopeless to trivial; the second model is better by a twentieth on each, give or take.
    base = [i / 100 for i in range(100)]
    noise = [0.02 * (-1) ** i for i in range(100)]
    better = [x + 0.05 + e for x, e in zip(base, noise, strict=True)]
    e = difference(better, base)
    assert e.value == pytest.approx(0.05)
    assert e.low is not None
    assert e.high is not None
    assert 0.04 < e.low < 0.05 < e.high < 0.06


def test_the_interval_of_a_difference_has_the_standard_error_of_the_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 200, generator=generator, dtype=torch.float64)
    e = difference(a.tolist(), b.tolist())
    assert e.low is not None
    assert e.high is not None
    error = float((a - b).std(unbiased=False)) / math.sqrt(200)
    assert (e.high - e.low) / (2 * 1.96) == pytest.approx(error, rel=0.05)


def test_no_interval_where_all_differences_are_equal() -> None:
    e = difference([1.0, 0.5], [0.5, 0.0])
    assert (e.value, e.low, e.high) == (0.5, None, None)


def test_other_problems_on_the_other_side_are_an_error() -> None:
    for call in (difference, sign_flip_test):
        with pytest.raises(ValueError, match="the same problems on both sides, got 2 and 1"):
            call([1.0, 0.0], [1.0])


def test_a_comparison_has_what_both_sides_have() -> None:
    a = {
        "average": {2: [1.0, 0.5, 0.0]},
        "pass": {1: [1.0, 0.5, 0.0], 2: [1.0, 1.0, 0.0]},
        "majority": {2: [1.0, 0.5, 0.0]},
    }
    b = {"average": {2: [0.5, 0.0, 0.5]}, "pass": {1: [0.5, 0.0, 0.5], 2: [1.0, 0.0, 1.0]}}
    found = compare(a, b, 2)
    assert set(found) == {"average", "pass", "test"}
    assert found["average"]["2"]["value"] == pytest.approx(0.5 / 3)
    assert found["pass"]["2"]["value"] == pytest.approx(0.0)
    # Halves: 1, 1, -1; every sum is odd, so every pattern reaches 1.
    assert found["test"] == {"name": PERMUTATION, "p": 1.0, "better": 2, "equal": 0, "worse": 1}
