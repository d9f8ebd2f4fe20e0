"""HAPO against GRPO: a word is to be copied, after as much filling as one likes."""

from pathlib import Path

from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.filling import writes
from unipo.reproduce.lesson import Lesson
from unipo.reproduce.logs import late


def lengths(run: Path) -> dict[str, float]:
    """Over the last fifth of the steps: tokens per response, and right responses per 100 tokens."""
    length = late(run, "length/mean")
    return {"length": length, "yield": 100 * late(run, "score/mean") / length}


REPRODUCTION = Reproduction(
    method="hapo",
    claim="Rewarding right responses for beating the shortest right one ever seen for their prompt makes responses much "
    "shorter than GRPO's, at little loss of accuracy.",
    arms={"hapo": "hapo", "grpo": "hapo[shaping=[]]", "mean of the history": "hapo[shaping.0.record=mean]"},
    metrics=(Metric("length", "response length over the last fifth, tokens", higher=False, kind="number"), ACCURACY),
    measure=lengths,
    task="copy",
    start=Lesson(writes(0.1), steps=300),
    budget="60 steps",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    select="yield",
    notes="Filling stands for idle reasoning: a lesson teaches the model to copy a word after 0 to 24 marks. 64 words, so that "
    "each is met some thirty times. Steps are the budget, as shorter responses would else buy more of them. The search "
    "takes right responses per token, for every arm. Record, floor, weight and the group of 2 are the released script's; "
    "the KL is GRPO's 0.04.",
)
