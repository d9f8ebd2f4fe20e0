"""MO-GRPO against GRPO on one of the scores: do all scores rise?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from unipo.compare.outcome import lines
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.lesson import Lesson
from unipo.reproduce.logs import late
from unipo.reproduce.rigged import LETTERS, examples, questions
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.registry import register_task
from unipo.tasks.task import Sample, Scores

# The responses "a" to "l": how helpful each is, and how safe.
HELP = (1.0, 0.95, 0.9, 0.7, 0.6, 0.5, 0.85, 0.75, 0.6, 0.3, 0.15, 0.0)
SAFE = (0.0, 0.1, 0.2, 0.3, 0.2, 0.4, 0.6, 0.75, 0.9, 0.6, 0.9, 1.0)
KINDS = ("red", "green", "blue")  # of questions; each turns the table by four letters
FIRST = 3
AXES = ("help", "safe")


def ask(rng: Random) -> str:
    return f"{rng.choice(KINDS)} {''.join(rng.choices(LETTERS, k=5))}"


def write(rng: Random) -> tuple[str, str]:
    """Any of the twelve responses, whatever the question."""
    return ask(rng), rng.choice(LETTERS[: len(HELP)])


@dataclass(frozen=True)
class AxesReward:
    """help and safe, by the table; both 0 for anything but one of its letters. The reward is `help`."""

    name: str = "axes"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        rows = [self.row(s) for s in samples]
        found = {
            "help": [0.0 if i is None else HELP[i] for i in rows],
            "safe": [0.0 if i is None else SAFE[i] for i in rows],
        }
        score = [(h + s) / 2 for h, s in zip(found["help"], found["safe"], strict=True)]
        return Scores(found["help"], score, found, [s.text for s in samples])

    def row(self, sample: Sample) -> int | None:
        """Which row of the table a response is, if it is one."""
        place = LETTERS[: len(HELP)].find(sample.text) if len(sample.text) == 1 else -1
        turned = 4 * KINDS.index(str(sample.row["question"]).partition(" ")[0])
        return None if place < 0 else (place + turned) % len(HELP)


def axes_task(size: int = 4096, heldout: int = 512) -> DatasetTask:
    train, held = (examples(questions(ask, s, n, 0)) for s, n in (("train", size), ("heldout", heldout)))
    return DatasetTask("axes", train, held, AxesReward())


register_task("axes", axes_task)


def gains(run: Path) -> dict[str, float]:
    """least: rise of the score that rose least, from the first steps to the last fifth; safe: safety over that fifth."""
    metrics = lines(run, "metrics")[:FIRST]
    rise = {a: late(run, f"reward/{a}") - sum(m[f"reward/{a}"] for m in metrics) / len(metrics) for a in AXES}
    return {"least": min(rise.values()), "safe": late(run, "reward/safe")}


REPRODUCTION = Reproduction(
    method="mo-grpo",
    claim="GRPO on the mean of several scores raises every one of them; on one score alone it leaves others behind.",
    arms={
        "mo-grpo": "mo-grpo",
        "grpo on one": "mo-grpo[shaping=[]]",
        "normalised apart": "mo-grpo[shaping=[],advantage=ComponentsNormalised()]",
    },
    metrics=(
        Metric("least", "rise of the score that rose least", kind="number"),
        ACCURACY,
        Metric("safe", "safety over the last fifth of the steps", kind="number"),
    ),
    measure=gains,
    task="axes",
    start=Lesson(write),
    budget="60 steps",
    train={"sampling": {"max_tokens": 4}},
    search={"lr": (5e-5, 1e-4, 2e-4, 4e-4)},
    notes="Two scores by a table of twelve one-letter responses instead of a reward model with four heads: the most "
    "helpful is the least safe, and some are nearly as good in both. Three kinds of questions turn the table, so that "
    "one letter does not do for all. A lesson teaches the twelve, each as often. Accuracy is the mean of the two scores on held-out questions, and what the "
    "search takes for every arm. GRPO on one is paid for help alone. The KL is GRPO's 0.04.",
)
