from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations
from random import Random

import pytest
import torch

from unipo.evaluate.accuracy import cluster_bootstrap
from unipo.evaluate.estimators import best_of_k, maj_at_k, pass_at_k, pass_hat_k


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(5, 2, 1) == pytest.approx(0.4, abs=1e-15)
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7, abs=1e-15)  # the plug-in would say 1 - 0.6^2 = 0.64
    assert pass_at_k(10, 1, 10) == 1.0
    assert pass_at_k(4, 3, 2) == 1.0
    assert pass_at_k(7, 0, 3) == 0.0
    assert pass_at_k(16, 1, 8) == 0.5


def test_pass_hat_k_by_hand() -> None:
    assert pass_hat_k(5, 2, 2) == pytest.approx(0.1, abs=1e-15)
    assert pass_hat_k(5, 1, 2) == 0.0
    assert pass_hat_k(5, 5, 5) == 1.0


def test_pass_at_k_grows_with_k_and_c_and_is_the_share_at_one() -> None:
    n = 9
    for c in range(n + 1):
        values = [pass_at_k(n, c, k) for k in range(1, n + 1)]
        assert values == sorted(values)
        assert values[0] == c / n
    for k in range(1, n + 1):
        values = [pass_at_k(n, c, k) for c in range(n + 1)]
        assert values == sorted(values)


@pytest.mark.parametrize(("n", "k"), [(4, 2), (8, 3), (12, 12)])
def test_pass_at_k_and_pass_hat_k_are_unbiased(n: int, k: int) -> None:
    for p in (0.1, 0.5, 0.93):
        chance = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
        expected = sum(chance[c] * pass_at_k(n, c, k) for c in range(n + 1))
        reliable = sum(chance[c] * pass_hat_k(n, c, k) for c in range(n + 1))
        assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
        assert reliable == pytest.approx(p**k, abs=1e-12)


def test_pass_at_k_of_many_samples_agrees_with_the_product_form() -> None:
    n, c, k = 1000, 3, 200
    product = 1.0
    for i in range(n - c + 1, n + 1):
        product *= 1 - k / i
    assert pass_at_k(n, c, k) == pytest.approx(1 - product, abs=1e-12)


@pytest.mark.parametrize("k", [0, 6])
def test_k_outside_the_samples_is_an_error_not_a_clip(k: int) -> None:
    for call in (
        lambda: pass_at_k(5, 2, k),
        lambda: pass_hat_k(5, 2, k),
        lambda: maj_at_k("AABBC", [True] * 2 + [False] * 3, k),
        lambda: best_of_k([0.0] * 5, [1.0] * 5, k),
    ):
        with pytest.raises(ValueError, match="k must lie between"):
            call()


def maj(answers: list[str | None], k: int) -> float:
    return maj_at_k(answers, [a == "A" for a in answers], k)


def test_majority_by_hand() -> None:
    assert maj(["A", "A", "B"], 2) == pytest.approx(2 / 3)  # AA wins, AB twice ties
    assert maj(["A", "A", "B", "B", "C"], 3) == pytest.approx(13 / 30)
    assert maj(["A", "A", "B", "B", "C"], 5) == 0.5
    assert maj(["A", "A", "B", None], 3) == 0.75  # AAB, AA-: 1 each; AB- twice: 1/2 each


def test_majority_of_one_is_the_share_and_silence_is_wrong() -> None:
    assert maj(["A", "B", None, None], 1) == 0.25
    assert maj([None, None], 2) == 0.0


def test_more_votes_do_not_help_where_a_wrong_answer_is_commoner() -> None:
    answers: list[str | None] = ["A"] * 3 + ["B"] * 5
    assert maj(answers, 1) > maj(answers, 7)
    assert maj(answers, 8) == 0.0


def test_majority_equals_enumeration_of_all_subsets() -> None:
    random = Random(0)
    for _ in range(30):
        n = random.randint(2, 9)
        answers = [random.choice(["A", "A", "B", "C", "D", None]) for _ in range(n)]
        k = random.randint(1, n)
        scores = []
        for subset in combinations(answers, k):
            votes = {a: subset.count(a) for a in set(subset) if a is not None}
            top = [a for a, v in votes.items() if v == max(votes.values())]
            scores.append(Fraction(1, len(top)) if "A" in top else Fraction(0))
        assert maj(answers, k) == pytest.approx(float(sum(scores) / len(scores)), abs=1e-12)


def test_differently_written_right_answers_vote_together() -> None:
    assert maj_at_k(["1/2", "0.5", "2", "2"], [True, True, False, False], 4) == 0.5


def test_an_answer_both_right_and_wrong_is_an_error() -> None:
    with pytest.raises(ValueError, match="right in one sample and wrong in another"):
        maj_at_k(["A", "A"], [True, False], 1)


def test_best_of_k_with_telling_blind_and_contrary_scorers() -> None:
    correct = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    for k in range(1, 8):
        assert best_of_k(correct, correct, k) == pytest.approx(pass_at_k(7, 2, k), abs=1e-12)
        assert best_of_k([3.0] * 7, correct, k) == pytest.approx(2 / 7, abs=1e-12)
        assert best_of_k([-c for c in correct], correct, k) == pytest.approx(pass_hat_k(7, 2, k), abs=1e-12)


def test_best_of_k_equals_enumeration_with_ties_averaged() -> None:
    scores, correct = [2.0, 2.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.25, 1.0, 0.0]
    for k in range(1, 6):
        values = []
        for subset in combinations(range(5), k):
            best = max(scores[i] for i in subset)
            top = [i for i in subset if scores[i] == best]
            values.append(sum(correct[i] for i in top) / len(top))
        assert best_of_k(scores, correct, k) == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_interval_over_new_problems_does_not_shrink_with_samples() -> None:
    # 10 problems each with mu = 0, .5, 1: between variance .1724 (sample), so SE = sqrt(.1724 / 30) = .0758.
    means = torch.tensor([0.0] * 10 + [0.5] * 10 + [1.0] * 10, dtype=torch.float64)
    low, high = cluster_bootstrap(means)
    assert (high - low) / (2 * 1.96) == pytest.approx(0.0758, rel=0.05)


def test_cluster_interval_covers_the_population_where_counting_samples_does_not() -> None:
    generator = torch.Generator().manual_seed(5)
    problems, samples, repeats = 50, 8, 300
    shape = torch.tensor(0.3, dtype=torch.float64)
    covered = naive = 0
    for _ in range(repeats):
        x = torch._standard_gamma(shape.expand(problems), generator=generator)
        y = torch._standard_gamma(shape.expand(problems), generator=generator)
        p = x / (x + y)
        right = torch.binomial(torch.full_like(p, samples), p, generator=generator) / samples
        low, high = cluster_bootstrap(right, draws=1000)
        covered += low <= 0.5 <= high
        mean = float(right.mean())
        half = 1.96 * math.sqrt(mean * (1 - mean) / (problems * samples))
        naive += mean - half <= 0.5 <= mean + half
    assert 0.90 <= covered / repeats <= 0.98
    assert naive / repeats < 0.75
