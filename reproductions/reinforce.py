"""REINFORCE with a running mean as baseline, against none."""

from unipo.reproduce import Reproduction
from unipo.reproduce.claim import ACCURACY, AREA

REPRODUCTION = Reproduction(
    method="reinforce",
    claim="Comparing each reward with a running mean of earlier ones leaves the expected gradient as it is, lowers its "
    "variance, and so learns faster than the bare reward.",
    arms={"running mean": "reinforce", "none": "reinforce[advantage=Raw()]"},
    metrics=(AREA, ACCURACY),
    search={"lr": (1e-4, 2e-4, 4e-4)},
    select="area",
    notes="Rewards are 0 or 1, so that without a baseline wrong answers have no gradient at all. Adam rescales the "
    "gradients of both arms. How far a baseline lowers the variance is measured in the reproduction of rloo.",
)
