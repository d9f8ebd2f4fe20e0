"""Truncated importance weights against none, with a sampler of rounded weights."""

import unipo.reproduce.quantised  # noqa: F401  (the source Quantised)
from unipo.reproduce import Reproduction
from unipo.reproduce.claim import ACCURACY, AREA

REPRODUCTION = Reproduction(
    method="tis",
    claim="With a sampler of low precision, weighing each token by its truncated ratio between trainer and sampler keeps "
    "the accuracy that training without a correction loses.",
    arms={
        "tis": "tis[source=Quantised(bits=3)]",
        "no correction": "grpo-token[source=Quantised(bits=3)]",
        "exact sampler": "grpo-token",
    },
    metrics=(ACCURACY, AREA),
    budget="80000 tokens",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    train={"old_logp": "recompute"},
    notes="The sampler's matrices are rounded to 3 bits: 2.5 % of the tokens have a ratio outside 0.5 to 5 at the start. The "
    "paper's samplers round to 8 bits or compute in bfloat16, "
    "for models and runs so large that this suffices. Evaluation uses the trained weights.",
)
