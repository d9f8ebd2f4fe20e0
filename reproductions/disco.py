"""DisCO against GRPO and DAPO on problems of very different difficulty."""

from pathlib import Path

from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.logs import late
from unipo.reproduce.paid import RULES
from unipo.reproduce.weights import mean_score, sampled_scores


def hardest(run: Path) -> dict[str, float]:
    """Held-out score of the kinds that start out paid least often, and entropy over the last fifth of the steps."""
    scores, rules = sampled_scores(run, "spread", 510), list(RULES.values())
    hard = [s for i, s in enumerate(scores) if rules[i % len(rules)] == "next"]
    return {"hardest": mean_score(hard), "entropy": late(run, "entropy")}


REPRODUCTION = Reproduction(
    method="disco",
    claim="Raising right responses above wrong ones with the same weight for every question, instead of GRPO's weight that "
    "favours questions of middling difficulty, learns more than GRPO and DAPO.",
    arms={
        "disco": "disco",
        "grpo": "grpo[source.minibatches=4,regularisers=[]]",
        "dapo": "dapo[source.group_size=8,source.minibatches=4,shaping=[]]",
    },
    metrics=(
        ACCURACY,
        Metric("hardest", "held-out score of the hardest two of six kinds"),
        Metric("entropy", "entropy over the last fifth, nats per token", kind="number"),
    ),
    measure=hardest,
    task="spread",
    responses=128,
    search={"lr": (1e-4, 2e-4, 4e-4)},
    seeds=6,
    notes="The kinds of problem pay for different answers, so that the starting model is paid for nearly all of one kind and "
    "for few of the hardest two. 16 prompts of 8 per batch in four mini-batches, instead of the paper's 128. GRPO "
    "without KL, DAPO without length penalty; its dropped prompts count in the budget. Temperature 1, not 0.6.",
)
