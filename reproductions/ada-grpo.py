"""Ada-GRPO against GRPO: does the longest format take over, and what does that cost in tokens?"""

from pathlib import Path

from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.lesson import Lesson
from unipo.reproduce.logs import late_completions
from unipo.reproduce.rigged import Ways
from unipo.tasks.registry import register_task

# Direct answer, short chain of thought, code, long chain of thought: success rates and lengths of four formats.
EVEN = {"A": 0.9, "C": 0.9, "P": 0.9, "L": 0.9}
WAYS = Ways(
    right={"easy": EVEN, "hard": {"A": 0.3, "C": 0.5, "P": 0.6, "L": 0.9}},
    digits={"A": 1, "C": 3, "P": 3, "L": 20},
    first={"A": 1, "C": 1, "P": 1, "L": 1},
)


def end(run: Path) -> dict[str, float]:
    """Of the last fifth of the steps: mean length, and the shares of the longest format by kind of question."""
    found = late_completions(run)
    easy = [r for r in found if "easy" in r["prompt"]] or found
    return {
        "length": sum(len(r["tokens"]) for r in found) / len(found),
        "long": sum(r["text"].startswith("L") for r in found) / len(found),
        "long_easy": sum(r["text"].startswith("L") for r in easy) / len(easy),
    }


register_task("ways-ada", WAYS.task)
REPRODUCTION = Reproduction(
    method="ada-grpo",
    claim="GRPO collapses to the longest and surest format; paying rare formats more keeps the others and answers with "
    "fewer tokens.",
    arms={
        "ada-grpo": "ada-grpo[shaping.0.signal.tags=A C P L]",
        "grpo": "ada-grpo[shaping=[]]",
    },
    metrics=(
        Metric("length", "response length in the last fifth of the steps, tokens", higher=False, kind="number"),
        ACCURACY,
        Metric("long", "share of the longest format in the last fifth", higher=False),
        Metric("long_easy", "the same on easy questions", higher=False),
    ),
    measure=end,
    task="ways-ada",
    start=Lesson(WAYS.write),
    budget="60 steps",
    seeds=6,
    train={"sampling": {"max_tokens": 24}, "log": {"completions": 64}},
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="Pay is rigged: on easy questions every format is right 9 times in 10, on hard ones 3, 5, 6 and 9 times; the "
    "lengths are 2, 4, 4 and 21 tokens, and the digits after a format's letter say nothing. The lesson gives each format "
    "a quarter. A budget of steps, as the bonus fades over a planned number of them. The search takes the best held-out "
    "accuracy, which does not look at length. What fewer tokens cost is the second metric.",
)
