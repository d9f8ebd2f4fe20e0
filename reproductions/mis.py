"""Importance weights and masks of whole responses against those of tokens, with a sampler of rounded weights."""

from pathlib import Path

import unipo.reproduce.quantised  # noqa: F401  (the source Quantised)
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.logs import dropped, fall


def stability(run: Path) -> dict[str, float]:
    """The largest fall of held-out accuracy below its best so far, and the share of tokens dropped."""
    return fall(run) | dropped(run)


REPRODUCTION = Reproduction(
    method="mis",
    claim="Where sampler and trainer differ, the whole response's ratio, masked where it is too large, corrects what ratios "
    "of single tokens cannot: training is more stable and ends higher.",
    arms={
        "mis": "mis[source=Quantised(bits=3)]",
        "tis": "tis[source=Quantised(bits=3)]",
        "seq-mask-tis": "seq-mask-tis[source=Quantised(bits=3)]",
    },
    metrics=(
        ACCURACY,
        Metric("fall", "largest fall of held-out accuracy below its best so far", higher=False),
        Metric("dropped", "share of tokens dropped", higher=False),
    ),
    measure=stability,
    points=9,
    budget="80000 tokens",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    train={"old_logp": "recompute"},
    notes="The mismatch comes from rounding the sampler's matrices to 3 bits. The paper's collapses come after hundreds of "
    "steps of models of billions of weights; a run here has about 50. The bounds of seq-mask-tis are for small "
    "mismatches.",
)
