"""Dr. GRPO against GRPO: does the division by length make wrong answers longer?"""

from pathlib import Path

from unipo.compare.outcome import lines
from unipo.errors import TrainingError
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.filling import writes
from unipo.reproduce.lesson import Lesson


def wrong_lengths(run: Path) -> dict[str, float]:
    """Mean length of the last fifth of the run's wrong responses, minus that of the first fifth."""
    wrong = [len(r["tokens"]) for r in lines(run, "completions") if r["score"] < 1]
    if not wrong:
        raise TrainingError(f"{run} recorded no wrong response, whose length could grow")
    n = max(1, len(wrong) // 5)
    return {"wrong_growth": sum(wrong[-n:]) / n - sum(wrong[:n]) / n}


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
    task="copy?size=4096",
    start=Lesson(writes(0.5), steps=300),
    budget="60 steps",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    train={"sampling": {"max_tokens": 96}, "log": {"completions": 64}},
    notes="A word is to be copied after filling that the reward does not see, so that responses may have any length: a "
    "lesson teaches 0 to 24 marks, and half of the words wrong. GRPO without its KL term, so that only the two divisions "
    "differ. Equal steps, as shorter responses would else buy more of them. Adam undoes most of the difference in scale "
    "between the arms.",
)
