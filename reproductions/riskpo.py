"""RiskPO against GRPO: accuracy, what several tries solve, and entropy."""

from collections import defaultdict
from pathlib import Path

from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.logs import late, late_completions


def end(run: Path) -> dict[str, float]:
    """Of the last fifth of the steps: share of training questions solved by any of five responses, and entropy."""
    best: dict[tuple[int, int], float] = defaultdict(float)
    for r in late_completions(run):
        key = r["step"], r["prompt_id"]
        best[key] = max(best[key], r["score"])
    return {"pass5": sum(best.values()) / len(best), "entropy": late(run, "entropy")}


REPRODUCTION = Reproduction(
    method="riskpo",
    claim="Penalising the lower part of the distribution of bundled rewards, in place of raising the mean, reaches a "
    "higher accuracy than GRPO and keeps more entropy.",
    arms={
        "riskpo": "riskpo",
        "grpo": "grpo[source.group_size=5,regularisers=[]]",
        "riskpo as released": "riskpo-released",
    },
    metrics=(
        ACCURACY,
        Metric("pass5", "training questions solved by any of five responses, last fifth"),
        Metric("entropy", "entropy in the last fifth, nats per token", kind="number"),
    ),
    measure=end,
    task='scratchpad?kinds=["mod","add","sort","reverse"]',
    responses=50,
    budget="80000 tokens",
    train={"log": {"completions": 50}},
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="Kinds of problems that the model solves 40 to 70 % of the time before training. Ten prompts of five responses "
    "per step, so two blocks of bundles; the paper's runs have a hundred or more. No training question comes twice, so "
    "their solved share is of unseen questions. GRPO without KL, as in the paper.",
)
