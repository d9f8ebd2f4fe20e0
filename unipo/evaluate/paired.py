"""Two policies on the same problems: the difference with its interval, and an exact paired test.

Problems differ far more than policies do, so the two scores of one problem are compared with one another, and it is
problems that are resampled or whose labels are exchanged, never single samples.

Source: paired bootstrap: Efron, Tibshirani 1993, ch. 8.  Permutation by flipping signs: Fisher 1935, sec. 21; with
one 0/1 sample per problem it is the exact test of McNemar 1947.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from unipo.evaluate.accuracy import cluster_bootstrap
from unipo.evaluate.statistics import Estimate

# Beyond so many additions the null distribution is sampled instead of computed.
EXACT_WORK = 2_000_000_000
DRAWS = 100_000
MCNEMAR = "McNemar's exact test"
PERMUTATION = "exact paired permutation test"
SAMPLED = f"paired permutation test, {DRAWS} random sign flips"

# Per-problem values by measure ("average", "pass", ...) and number of samples.
Values = Mapping[str, Mapping[int, Sequence[float]]]


def difference(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Mean of a - b over problems with its 95 % interval over new problems (paired bootstrap, percentiles).

    a, b: one value per problem, in the same order.  No interval where every problem differs by the same: nothing is
    then known of how differences vary.
    """
    gap = _gap(a, b)
    if len(gap) < 2 or bool((gap == gap[0]).all()):
        return Estimate(float(gap.mean()), None, None)
    return Estimate(float(gap.mean()), *cluster_bootstrap(gap))


def sign_flip_test(a: Sequence[float], b: Sequence[float], samples: int = 1) -> tuple[float, str]:
    """(two-sided p, name of the test) that which policy is which does not matter on any problem.

    p = P(|sum_i s_i d_i| >= |sum_i d_i|), d = a - b, s_i = +1 or -1 with equal chance.  a, b: mean scores of `samples`
    samples per problem.  Where all d are multiples of 1/samples the chance is computed exactly, by adding one problem
    after another to the distribution of the sum; otherwise it is (1 + hits) / (1 + draws) of seeded random flips.
    """
    scaled = _gap(a, b) * samples
    whole = scaled.round()
    steps = whole[whole != 0].abs().long()
    size = 2 * int(steps.sum()) + 1
    if not bool(((scaled - whole).abs() < 1e-6).all()) or len(steps) * size > EXACT_WORK:
        return _sampled(scaled), SAMPLED
    chance = torch.zeros(size, dtype=torch.float64)
    middle = size // 2
    chance[middle] = 1.0
    for step in steps.tolist():
        chance = (chance.roll(step) + chance.roll(-step)) / 2  # nothing wraps: the sum of all steps fits
    far = (torch.arange(size) - middle).abs() >= abs(int(whole.sum()))
    name = MCNEMAR if samples == 1 and bool((steps == 1).all()) else PERMUTATION
    return min(1.0, float(chance[far].sum())), name


def compare(a: Values, b: Values, samples: int) -> dict[str, Any]:
    """Difference a - b of every measure that both have, and the paired test on the average score.

    a, b: values of the same problems in the same order.  samples: per problem.
    """
    shared = {name: [k for k in a[name] if k in b[name]] for name in a if name in b}
    found: dict[str, Any] = {
        name: {str(k): difference(a[name][k], b[name][k]).as_dict() for k in ks} for name, ks in shared.items()
    }
    first, second = a["average"][samples], b["average"][samples]
    p, name = sign_flip_test(first, second, samples)
    gap = _gap(first, second)
    found["test"] = {
        "name": name,
        "p": p,
        "better": int((gap > 0).sum()),
        "equal": int((gap == 0).sum()),
        "worse": int((gap < 0).sum()),
    }
    return found


def _gap(a: Sequence[float], b: Sequence[float]) -> torch.Tensor:
    if len(a) != len(b) or not len(a):
        raise ValueError(f"a paired comparison needs the same problems on both sides, got {len(a)} and {len(b)}")
    return torch.tensor(list(a), dtype=torch.float64) - torch.tensor(list(b), dtype=torch.float64)


def _sampled(gap: torch.Tensor) -> float:
    generator = torch.Generator().manual_seed(0)
    size, seen = float(gap.sum().abs()), 0
    edge = size - 1e-9 * max(1.0, float(gap.abs().sum()))  # equal sums, added in another order
    rows = max(1, 2**22 // len(gap))
    for start in range(0, DRAWS, rows):
        signs = torch.randint(2, (min(rows, DRAWS - start), len(gap)), generator=generator).double() * 2 - 1
        seen += int(((signs @ gap).abs() >= edge).sum())
    return (1 + seen) / (1 + DRAWS)
