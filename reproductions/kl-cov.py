"""KL-Cov against GRPO where many responses are right: how much entropy is left at the same score."""

import unipo.reproduce.paid  # noqa: F401  (registers the task "slips")
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.logs import entropies

REPRODUCTION = Reproduction(
    method="kl-cov",
    claim="Penalising only the tokens whose log-probability and advantage move together most leaves the policy more "
    "entropy than GRPO at the same score, and learns at least as much.",
    arms={
        "kl-cov": "kl-cov[regularisers.0.share=0.02]",
        "grpo": "clip-cov[objective=Clipped()]",
        "clip-higher": "clip-cov[objective=Clipped(high=0.28)]",
    },
    metrics=(
        Metric("entropy_at", "entropy at a held-out score of 90 %, nats per token", kind="number"),
        ACCURACY,
        Metric("entropy_end", "entropy over the last fifth, nats per token", kind="number"),
    ),
    measure=entropies,
    task="slips",
    budget="50000 tokens",
    points=9,
    train={"eval": {"prompts": 256}},
    search={"lr": (1e-4, 2e-4, 4e-4)},
    seeds=6,
    notes="Any wrong answer pays, so that many responses are right and entropy need not go as the score rises. Eight "
    "mini-batches of one prompt, as many updates per batch as the paper's. A mini-batch has some 200 tokens, of which "
    "the paper's 0.2 % would be one: 2 % (some four) here. All three arms sample dynamically.",
)
