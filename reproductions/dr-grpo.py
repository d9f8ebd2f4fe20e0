"""Dr. GRPO against GRPO: does the division by length make wrong answers longer?"""

from pathlib import Path

from unipo.compare.outcome import lines
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY


def wrong_lengths(run: Path) -> dict[str, float]:
    """Mean length of wrong responses in the last fifth of the steps, minus that in the first fifth."""
    records = lines(run, "completions")
    last = max(r["step"] for r in records)
    fifth = max(1, last // 5)

    def mean(first: int, until: int) -> float:
        found = [len(r["tokens"]) for r in records if first <= r["step"] <= until and r["score"] < 1]
        return sum(found) / len(found) if found else 0.0

    return {"wrong_growth": mean(last - fifth + 1, last) - mean(1, fifth)}


REPRODUCTION = Reproduction(
    method="dr-grpo",
    claim="Dividing by each response's length favours long wrong answers: under GRPO they grow, without its two "
    "divisions they do not, at the same accuracy.",
    arms={"dr-grpo": "dr-grpo", "grpo": "grpo[regularisers=[]]"},
    metrics=(
        Metric("wrong_growth", "growth of wrong responses, tokens", higher=False, kind="number"),
        ACCURACY,
    ),
    measure=wrong_lengths,
    search={"lr": (1e-4, 2e-4, 4e-4)},
    train={"sampling": {"max_tokens": 96}, "log": {"completions": 64}},
    notes="GRPO without its KL term, so that only the two divisions differ. The shipped model's answers are short, and "
    "Adam undoes most of the difference in scale between the arms.",
)
