"""Held-out accuracy with an interval that says which randomness it covers.

Source: Wilson 1927 where every problem is one trial; cluster bootstrap (Efron, Tibshirani 1993) for several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

# Resampled values held at once, so that many problems do not cost gigabytes.
HELD = 2**22


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval over new problems.

    problems, samples: how many, and per problem.  unscored: responses that could not be scored, and count 0.
    """

    accuracy: float
    low: float
    high: float
    problems: int
    samples: int
    unscored: int = 0

    def as_dict(self) -> dict[str, float]:
        """Its numbers by name, for JSON; `unscored` where there are any."""
        return {name: x for name, x in asdict(self).items() if x or name != "unscored"}


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
    rows = max(1, HELD // n)
    resampled = torch.cat(
        [
            means.double()[torch.randint(n, (min(rows, draws - start), n), generator=generator)].mean(1)
            for start in range(0, draws, rows)
        ]
    )
    low, high = torch.quantile(resampled, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(low), float(high)


def accuracy_interval(scores: Sequence[Sequence[float]]) -> Interval:
    """Mean score over problems, each with the same number of samples, and its interval for new problems.

    Every problem wholly right or wholly wrong (as with one 0/1 sample each), or all with one mean in [0, 1], whose
    resamples would all be alike: Wilson over the problems, which is not too narrow for any scores in [0, 1].  Otherwise
    problems are resampled with all their samples, because samples of one problem are not independent.
    """
    if not scores or not scores[0]:
        raise ValueError("accuracy_interval needs at least one problem with one sample")
    means = torch.tensor([sum(s) / len(s) for s in scores], dtype=torch.float64)
    binary = bool(((means == 0) | (means == 1)).all())
    # Sums of the same scores in another order differ in their last digits.
    alike = float(means.max() - means.min()) < 1e-12 and float(means.min()) >= 0 and float(means.max()) <= 1
    low, high = wilson(float(means.sum()), len(means)) if binary or alike else cluster_bootstrap(means)
    return Interval(float(means.mean()), low, high, len(scores), len(scores[0]))


@dataclass(frozen=True)
class Spread:
    """Where the uncertainty of a mean score comes from: the choice of problems, and the sampling of answers.

    between: variance of the problems' true mean scores (sample variance, divisor P - 1).  within: mean variance of
    one sample's score around its problem's mean.
    """

    between: float
    within: float

    def error(self, problems: int, samples: int) -> float:
        """Standard error of the mean over new problems: sqrt((between + within / n) / P)."""
        return float(((self.between + self.within / samples) / problems) ** 0.5)

    def error_fixed(self, problems: int, samples: int) -> float:
        """Standard error over new samples of the same problems: sqrt(within / (n P))."""
        return float((self.within / (samples * problems)) ** 0.5)


def spread(scores: Sequence[Sequence[float]]) -> Spread | None:
    """Both variances, estimated without bias from n >= 2 samples of each of P >= 2 problems; None from fewer.

    within = mean_p s_p^2 (divisor n - 1); between = Var_p(mean_p) - within / n, at least 0.
    Source: one-way analysis of variance with random effects (Searle, Casella, McCulloch 1992, sec. 3.5).
    """
    table = torch.tensor([list(s) for s in scores], dtype=torch.float64)
    problems, samples = table.shape
    if problems < 2 or samples < 2:
        return None
    within = float(table.var(1).mean())
    return Spread(max(0.0, float(table.mean(1).var()) - within / samples), within)
