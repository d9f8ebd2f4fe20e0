"""Held-out accuracy with an interval that says which randomness it covers.

Source: Wilson 1927 for one answer per problem; cluster bootstrap (Efron, Tibshirani 1993) for several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval over new problems. problems, samples: how many, and per problem."""

    accuracy: float
    low: float
    high: float
    problems: int
    samples: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def wilson(successes: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's 95 % score interval for a share. Never leaves [0, 1], and is not empty at 0 or n successes."""
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * ((p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def cluster_bootstrap(means: Tensor, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of per-problem means, resampling problems. means: [P]."""
    generator = torch.Generator().manual_seed(seed)
    n = len(means)
    index = torch.randint(n, (draws, n), generator=generator)
    resampled = means.double()[index].mean(1)
    low, high = torch.quantile(resampled, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(low), float(high)


def accuracy_interval(scores: Sequence[Sequence[float]]) -> Interval:
    """Mean score over problems, each with the same number of samples, and its interval for new problems.

    One 0/1 sample per problem: Wilson.  Otherwise problems are resampled with all their samples, because samples of
    one problem are not independent.
    """
    if not scores or not scores[0]:
        raise ValueError("accuracy_interval needs at least one problem with one sample")
    means = torch.tensor([sum(s) / len(s) for s in scores], dtype=torch.float64)
    binary = all(len(s) == 1 and s[0] in (0.0, 1.0) for s in scores)
    mean = float(means.mean())
    low, high = wilson(float(means.sum()), len(means)) if binary else cluster_bootstrap(means)
    return Interval(mean, low, high, len(scores), len(scores[0]))
