"""DeGRPO against GRPO: two modes of answering, of which easy questions need the short one and hard ones the long."""

from pathlib import Path

from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.lesson import Lesson
from unipo.reproduce.logs import late_completions
from unipo.reproduce.rigged import Ways
from unipo.tasks.registry import register_task

WAYS = Ways(
    right={"easy": {"S": 0.95, "L": 0.95}, "hard": {"S": 0.1, "L": 0.9}},
    digits={"S": 2, "L": 20},
    first={"S": 1, "L": 1},
)
MODES = "shaping=(ModeReward(short='S',long='L',anywhere=False),)"


def modes(run: Path) -> dict[str, float]:
    """Over the last fifth of the steps: share of short answers to easy questions, to hard ones, and the difference."""
    late = late_completions(run)
    groups = [[r["text"].startswith("S") for r in late if kind in r["prompt"]] for kind in ("easy", "hard")]
    easy, hard = (sum(g) / len(g) if g else 0.0 for g in groups)
    return {"short_easy": easy, "short_hard": hard, "separation": easy - hard}


register_task("ways-degrpo", WAYS.task)
REPRODUCTION = Reproduction(
    method="degrpo",
    claim="Averaging the token that chooses the mode apart from the answer lets a model learn when to think: short answers "
    "to easy questions, long ones to hard, where GRPO collapses into one mode.",
    arms={
        "degrpo": f"degrpo[average=ControlSplit(alpha=0.1),{MODES}]",
        "grpo": f"degrpo[average=SequenceMean(),{MODES}]",
        "alpha 0.001": f"degrpo[{MODES}]",
    },
    metrics=(
        Metric("separation", "share of short answers, to easy less to hard questions", kind="number"),
        ACCURACY,
        Metric("short_easy", "share of short answers to easy questions"),
    ),
    measure=modes,
    task="ways-degrpo",
    start=Lesson(WAYS.write),
    budget="100 steps",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    select="separation",
    seeds=6,
    train={"log": {"completions": 64}},
    notes="Pay is rigged: short answers are right 95 times in 100 on easy questions and 10 on hard ones, long ones 95 and 90; "
    "their digits say nothing, so only the choice of mode is learned. A lesson gives each mode a half. alpha is 0.1, "
    "which lies between 1/T of the short and of the long answers as the paper's 0.001 does there; the third arm has "
    "the paper's. Steps, because modes differ in length. GRPO is the mean of per-response means.",
)
