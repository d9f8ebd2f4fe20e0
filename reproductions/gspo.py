"""GSPO against GRPO with eight updates per batch of samples."""

from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.logs import fall

REPRODUCTION = Reproduction(
    method="gspo",
    claim="One length-normalised ratio and clip per response trains more stably than one per token, and to a higher "
    "score, when a batch is used for several updates.",
    arms={"gspo": "gspo[source.minibatches=8]", "grpo": "grpo[source.minibatches=8,regularisers=[]]"},
    metrics=(
        ACCURACY,
        Metric("fall", "largest fall of held-out accuracy below its best so far", higher=False),
    ),
    measure=fall,
    points=9,
    search={"lr": (5e-5, 1e-4, 2e-4)},
    notes="Eight mini-batches of one prompt per batch, for more off-policyness than the paper's four. A dense model of "
    "0.8 million weights: the paper's strongest case, mixtures of experts, is not tested.",
)
