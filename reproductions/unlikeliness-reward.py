"""The unlikeliness reward against GRPO: what many samples solve after training."""

from pathlib import Path

import unipo.reproduce.paid  # noqa: F401  (registers the task "slips")
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.weights import pass_rate, sampled_scores

TASK, SAMPLES = "slips?share=0.25", 32


def coverage(run: Path) -> dict[str, float]:
    """pass@k of the trained model on held-out problems."""
    scores = sampled_scores(run, TASK, 64, SAMPLES)
    return {"pass32": pass_rate(scores, SAMPLES), "pass4": pass_rate(scores, 4)}


REPRODUCTION = Reproduction(
    method="unlikeliness-reward",
    claim="Paying a right response less the likelier it was, and two epochs per batch, raises what many samples solve "
    "above what they solve after GRPO.",
    arms={
        "unlikeliness-reward": "unlikeliness-reward",
        "grpo": "unlikeliness-reward[shaping=[],source.epochs=1]",
        "two epochs alone": "unlikeliness-reward[shaping=[]]",
    },
    metrics=(
        Metric("pass32", "held-out pass@32 after training"),
        Metric("pass4", "held-out pass@4 after training"),
        ACCURACY,
    ),
    measure=coverage,
    task=TASK,
    budget="60000 tokens",
    responses=128,
    search={"lr": (2e-4, 4e-4, 8e-4)},
    seeds=6,
    notes="A random quarter of each problem's wrong answers pays, so that one sample is right at most that often, and many "
    "are the more often the more they differ. Four prompts of 32 per batch instead of the code's eight. GRPO has the "
    "same filter of prompts, KL of 0.1 and skipped steps. The search takes the best accuracy of one sample, for every arm.",
)
