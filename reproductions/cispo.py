"""CISPO against clipping the surrogate, with many updates per batch of samples."""

from unipo.reproduce import Reproduction
from unipo.reproduce.claim import ACCURACY, AREA

REPRODUCTION = Reproduction(
    method="cispo",
    claim="Clipping the detached weight instead of the surrogate keeps the gradient of every token and learns faster than "
    "DAPO and GRPO when samples serve several updates.",
    arms={
        "cispo": "cispo[source.minibatches=8]",
        "dapo": "dapo[selection=[],shaping=[],source.group_size=8,source.minibatches=8]",
        "grpo": "grpo-token[source.minibatches=8]",
    },
    metrics=(AREA, ACCURACY),
    search={"lr": (5e-5, 1e-4, 2e-4)},
    select="area",
    seeds=6,
    notes="Eight mini-batches per batch of samples. DAPO without dynamic sampling and length penalty, so that only the "
    "treatment of the ratio differs. The speed is the mean accuracy over the budget; the paper counts steps to the same "
    "accuracy.",
)
