"""Dr. GRPO against GRPO: does the division by length make wrong answers longer?"""

from pathlib import Path

from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.filling import writes
from unipo.reproduce.lesson import Lesson
from unipo.reproduce.logs import late_completions


def wrong_lengths(run: Path) -> dict[str, float]:
    """How much longer wrong responses are than the right ones of the same step, on average over the last fifth.

    0 for a run in which no step of that time has both kinds.
    """
    steps: dict[int, tuple[list[int], list[int]]] = {}
    for r in late_completions(run):
        steps.setdefault(r["step"], ([], []))[r["score"] >= 1].append(len(r["tokens"]))
    excess = [n - sum(right) / len(right) for wrong, right in steps.values() if right for n in wrong]
    return {"wrong_excess": sum(excess) / len(excess) if excess else 0.0}


REPRODUCTION = Reproduction(
    method="dr-grpo",
    claim="Dividing by each response's length favours long wrong answers: under GRPO they end longer, beside right ones, "
    "than without its two divisions, at the same accuracy.",
    arms={"dr-grpo": "dr-grpo", "grpo": "grpo[regularisers=[]]"},
    metrics=(
        Metric("wrong_excess", "wrong responses less right ones, tokens, last fifth", higher=False, kind="number"),
        ACCURACY,
    ),
    measure=wrong_lengths,
    task="copy?size=4096",
    start=Lesson(writes(0.5), steps=300),
    budget="60 steps",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    train={"sampling": {"max_tokens": 96}, "log": {"completions": 64}},
    notes="A word is to be copied after filling that the reward does not see, so that responses may have any length: a "
    "lesson teaches 0 to 24 marks, and half of the words wrong, whatever the marks. In both arms all responses shorten "
    "and wrong ones become rare, so wrong responses are measured beside the right ones of the same steps, not by their own "
    "growth. GRPO without its KL term, so that only the two divisions differ. Equal steps, as shorter responses would else "
    "buy more of them. Adam undoes most of the difference in scale between the arms.",
)
