"""What a user gets with k samples, estimated without bias from the n >= k samples of one problem.

Every estimator is an average over all C(n, k) subsets of the samples, computed exactly by counting; report the mean
over problems, and resample problems for its interval (`unipo.evaluate.accuracy.cluster_bootstrap`).
avg@n needs no estimator: c / n, which is also pass@1.

Source: pass@k: HumanEval (arXiv 2107.03374), section 2.1; the others in the same form.
Unsure: whether a given paper's avg@k means n = k samples or a subsample of more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from fractions import Fraction
from itertools import groupby
from math import comb


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k samples is right: 1 - C(n-c, k) / C(n, k).

    n: samples; c: right ones among them.  Unbiased for 1 - (1-p)^k; the plug-in 1 - (1-c/n)^k is biased low.
    Raises ValueError for k > n (undefined, never clipped), k < 1, or c outside [0, n].
    """
    _check(n, c, k)
    return float(1 - Fraction(comb(n - c, k), comb(n, k)))


def pass_hat_k(n: int, c: int, k: int) -> float:
    """Chance that all k samples are right (reliability): C(c, k) / C(n, k). Arguments and errors as `pass_at_k`."""
    _check(n, c, k)
    return float(Fraction(comb(c, k), comb(n, k)))


def maj_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """Chance that the commonest answer among k samples is right.

    answers: the final answer of each sample, None if none was found: it casts no vote.  correct: the verifier's word
    on each sample.  All right samples are one class of equivalent answers; wrong ones are classes by equality.  A
    right answer that ties with m - 1 others gets credit 1/m, the expectation of a random tie-break; a subset without
    votes gets 0.  Summed over the number of votes for the right answer, the ways in which no other class has more,
    so exact for any n where enumeration would need C(n, k) subsets.
    Raises ValueError: as `pass_at_k`; lengths that differ; a wrong sample with the answer of a right one.
    """
    if len(answers) != len(correct):
        raise ValueError(f"{len(answers)} answers but {len(correct)} verdicts")
    n, c = len(answers), sum(map(bool, correct))
    _check(n, c, k)
    right = {a for a, good in zip(answers, correct, strict=True) if good}
    wrong = [a for a, good in zip(answers, correct, strict=True) if not good]
    mixed = [a for a in wrong if a is not None and a in right]
    if mixed:
        raise ValueError(f"the answer {mixed[0]!r} is right in one sample and wrong in another")
    silent = sum(a is None for a in wrong)
    sizes = list(Counter(a for a in wrong if a is not None).values())
    total = Fraction(0)
    for votes in range(1, min(c, k) + 1):
        for ties, ways in _no_more_than(sizes, silent, votes, k - votes).items():
            total += Fraction(comb(c, votes) * ways, ties + 1)
    return float(total / comb(n, k))


def best_of_k(scores: Sequence[float], correct: Sequence[float], k: int) -> float:
    """Expected correctness of the sample that a scorer ranks first among k: sum_r correct_(r) C(n-r, k-1) / C(n, k).

    scores: the scorer's, higher is better; correct: what is wanted, 0/1 or graded.  The sample of rank r is the best
    of the subsets whose other members all rank below it.  Equal scores: average over their orders.
    Raises ValueError: as `pass_at_k`, and for lengths that differ.
    """
    if len(scores) != len(correct):
        raise ValueError(f"{len(scores)} scores but {len(correct)} verdicts")
    n = len(scores)
    _check(n, 0, k)
    order = sorted(range(n), key=lambda i: -scores[i])
    total, rank = Fraction(0), 0
    for _, tied in groupby(order, key=lambda i: scores[i]):
        members = list(tied)
        weight = sum(comb(n - r, k - 1) for r in range(rank + 1, rank + len(members) + 1))
        total += Fraction(weight, len(members)) * sum(Fraction(float(correct[i])) for i in members)
        rank += len(members)
    return float(total / comb(n, k))


def _no_more_than(sizes: Sequence[int], silent: int, most: int, rest: int) -> dict[int, int]:
    """Ways to draw `rest` samples from wrong classes and voteless ones, no class above `most`, by classes at `most`."""
    ways: dict[tuple[int, int], int] = {(0, 0): 1}  # (drawn, tied) -> ways
    for size in sizes:
        grown: Counter[tuple[int, int]] = Counter()
        for (drawn, tied), count in ways.items():
            for x in range(min(size, most, rest - drawn) + 1):
                grown[drawn + x, tied + (x == most)] += count * comb(size, x)
        ways = grown
    out: Counter[int] = Counter()
    for (drawn, tied), count in ways.items():
        out[tied] += count * comb(silent, rest - drawn)
    return out


def _check(n: int, c: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k must lie between 1 and the number of samples, got k = {k} with n = {n}")
    if not 0 <= c <= n:
        raise ValueError(f"{c} right samples of {n}")
