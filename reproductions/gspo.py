"""GSPO against GRPO with eight updates per batch of samples."""

from pathlib import Path

from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.logs import fall, late


def falls_and_clips(run: Path) -> dict[str, float]:
    return {**fall(run), "clipped": late(run, "clip_fraction")}


REPRODUCTION = Reproduction(
    method="gspo",
    claim="One length-normalised ratio and clip per response trains more stably than one per token, and to a higher "
    "score, when a batch is used for several updates.",
    arms={
        "gspo": "gspo[source.minibatches=8]",
        "grpo": "grpo[source.minibatches=8,regularisers=[]]",
        "gspo, clip 100 times wider": "gspo[source.minibatches=8,objective.low=0.03,objective.high=0.04]",
    },
    metrics=(
        ACCURACY,
        Metric("fall", "largest fall of held-out accuracy below its best so far", higher=False),
        Metric("clipped", "share of tokens clipped, last fifth"),
    ),
    measure=falls_and_clips,
    points=9,
    search={"lr": (5e-5, 1e-4, 2e-4)},
    notes="Eight mini-batches of one prompt per batch, for more off-policyness than the paper's four. A dense model of "
    "0.8 million weights: the paper's strongest case, mixtures of experts, is not tested. The clip (3e-4, 4e-4) is the paper's, for responses of thousands of tokens; a mean "
    "log-ratio over 26 tokens is wider, so the third arm has one for such.",
)
