"""IcePop against truncated importance weights and none, with a sampler of rounded weights."""

import unipo.reproduce.quantised  # noqa: F401  (the source Quantised)
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY, AREA
from unipo.reproduce.logs import dropped

REPRODUCTION = Reproduction(
    method="icepop",
    claim="Dropping the tokens on which sampler and trainer disagree too much learns more than training on them all.",
    arms={
        "icepop": "icepop[source=Quantised(bits=3)]",
        "no correction": "grpo-token[source=Quantised(bits=3)]",
        "tis": "tis[source=Quantised(bits=3)]",
    },
    metrics=(ACCURACY, AREA, Metric("dropped", "share of tokens dropped", higher=True)),
    measure=dropped,
    budget="80000 tokens",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    train={"old_logp": "recompute"},
    notes="The mismatch comes from rounding the sampler's matrices to 3 bits; the paper's comes from the routing of large "
    "mixtures of experts, which a dense model of 0.8 million weights does not have.",
)
