"""Comparing methods by a few runs each: means, interquartile means, chances of improvement, and their intervals.

Scores are [..., R, T]: R runs (seeds) of each of T tasks, any leading dimensions.  Definitions are those of "Deep RL at
the Edge of the Statistical Precipice" (arXiv 2108.13264; google-research/rliable: metrics.py, library.py).  The
intervals differ in one thing: a percentile bootstrap of few runs is too narrow (of five normal values it covers 83 %
instead of 95 %, of ten 91 %), so its percentiles are moved outwards by the factor that Student's t gives (92 %, 95 %).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import NormalDist

import torch
from torch import Tensor

DRAWS = 20_000
# Up to so many resamples are enumerated instead of drawn, so that the interval has no noise of its own.
ENUMERATED = 50_000


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval over new runs; low and high are None where one run says nothing of others."""

    value: float
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        """Its numbers by name, for JSON."""
        return asdict(self)


def mean_score(scores: Tensor) -> Tensor:
    """Mean over runs, then over tasks. [..., R, T] -> [...]. Source: rliable metrics.py, aggregate_mean."""
    return scores.mean(-2).mean(-1)


def interquartile_mean(scores: Tensor) -> Tensor:
    """Mean of the middle half of all runs of all tasks: of n values, floor(n/4) are left out at either end.

    [..., R, T] -> [...].  Source: arXiv 2108.13264, sec. 4.3; rliable metrics.py, aggregate_iqm.
    """
    flat = scores.flatten(-2).sort(-1).values
    n = flat.shape[-1]
    cut = n // 4
    return flat[..., cut : n - cut].mean(-1)


def improvement(x: Tensor, y: Tensor) -> Tensor:
    """Chance that a run of X beats a run of Y on the same task, ties counted half, averaged over tasks.

    P = mean_t (1 / (R_x R_y)) sum_ij [x_it > y_jt] + [x_it = y_jt]/2.  x: [..., R_x, T]; y: [..., R_y, T] -> [...].
    Source: arXiv 2108.13264, sec. 4.3; rliable metrics.py, probability_of_improvement (Mann-Whitney U over R_x R_y).
    """
    a, b = x.unsqueeze(-2), y.unsqueeze(-3)
    wins = (a > b).to(torch.float64) + 0.5 * (a == b).to(torch.float64)
    return wins.mean((-3, -2)).mean(-1)


def area_under_curve(x: Sequence[float], y: Sequence[float]) -> float:
    """Mean height of a curve given by points, joined by straight lines: trapezoids over the width.

    x: increasing.  Raises ValueError for fewer than two points, or x that does not increase.
    """
    if len(x) < 2 or len(x) != len(y):
        raise ValueError(f"a curve needs two points or more, got {len(x)} and {len(y)} values")
    if any(b <= a for a, b in pairwise(x)):
        raise ValueError(f"the places of a curve's points must increase, got {list(x)}")
    total = sum((b - a) * (u + v) / 2 for (a, b), (u, v) in zip(pairwise(x), pairwise(y), strict=True))
    return total / (x[-1] - x[0])


def bootstrap(
    statistic: Callable[..., Tensor], *samples: Tensor, draws: int = DRAWS, seed: int = 0, widened: bool = True
) -> Estimate:
    """A statistic of one or more samples with its 95 % interval: runs are resampled within each task.

    samples: [R, T] each (R may differ), resampled independently of each other; for a paired difference give the
    differences as one sample.  widened: see `tail`; False takes 2.5 % at either end, as rliable does.
    One small sample of one task is enumerated (all R^R resamples, no chance), everything else drawn `draws` times.
    Source: arXiv 2108.13264, sec. 4.1 (stratified percentile bootstrap).
    """
    wide = [s.to(torch.float64) for s in samples]
    value = float(statistic(*wide))
    if min(s.shape[0] for s in wide) < 2:
        return Estimate(value, None, None)
    generator = torch.Generator().manual_seed(seed)
    found = statistic(*(_resampled(s, draws, generator, alone=len(wide) == 1) for s in wide))
    share = tail([s.shape[0] for s in wide], wide[0].shape[1]) if widened else 0.025
    ends = torch.tensor([share, 1 - share], dtype=torch.float64)
    low, high = torch.quantile(found, ends, interpolation="nearest").tolist()
    return Estimate(value, float(low), float(high))


def _resampled(sample: Tensor, draws: int, generator: torch.Generator, alone: bool) -> Tensor:
    """[draws, R, T]: each task's runs drawn with replacement, or every way to do so where that is few."""
    runs, tasks = sample.shape
    if alone and tasks == 1 and runs**runs <= ENUMERATED:
        index = torch.cartesian_prod(*[torch.arange(runs)] * runs).unsqueeze(-1)
    else:
        index = torch.randint(runs, (draws, runs, tasks), generator=generator)
    return sample.expand(len(index), runs, tasks).gather(1, index)


def tail(runs: Sequence[int], tasks: int) -> float:
    """Share of resamples to leave out at either end for 95 %: Phi(-t sqrt(R/(R-1))), t = Student's 97.5 % quantile.

    runs: of each sample; t has T sum(R - 1) degrees of freedom and R is the smallest.  The bootstrap's spread is too
    small by sqrt((R-1)/R), and its normal quantile by t/1.96; both are made good by going further out.  With five
    runs that is 0.1 % instead of 2.5 %, nearly the range of the values.
    Source: Hesterberg, "What Teachers Should Know About the Bootstrap" (arXiv 1411.5279), expanded percentile interval.
    """
    fewest = min(runs)
    t = student_quantile(0.975, tasks * sum(n - 1 for n in runs))
    return NormalDist().cdf(-t * math.sqrt(fewest / (fewest - 1)))


def student_quantile(p: float, freedom: int) -> float:
    """The p-quantile (1/2 <= p < 1) of Student's t with so many degrees of freedom, by bisection of its exact CDF."""
    if freedom < 1 or not 0.5 <= p < 1:
        raise ValueError(f"student_quantile needs 1/2 <= p < 1 and at least one degree of freedom, got {p}, {freedom}")
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def student_cdf(t: float, freedom: int) -> float:
    """P(T <= t), t >= 0, as a finite sum for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    theta = math.atan2(t, math.sqrt(freedom))
    cosine2 = math.cos(theta) ** 2
    odd = freedom % 2
    term = math.cos(theta) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine2 * (k - 1) / k
        total += term
    inside = math.sin(theta) * total
    within = 2 / math.pi * (theta + inside) if odd else inside
    return (1 + within) / 2
