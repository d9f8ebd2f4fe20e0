"""GCPO against paying for every auxiliary construction, and against paying for none."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from unipo.batch import Batch
from unipo.parts.behaviour import Behaviour, ContrastiveBonus
from unipo.parts.part import Signal
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY, AREA
from unipo.reproduce.lesson import Lesson
from unipo.reproduce.logs import late_completions
from unipo.reproduce.rigged import Ways
from unipo.tasks.registry import register_task

# c: with a construction, n: without one.
WAYS = Ways(
    right={"alpha": {"c": 0.8, "n": 0.2}, "beta": {"c": 0.2, "n": 0.8}},
    digits={"c": 4, "n": 4},
    first={"c": 1, "n": 1},
)


@dataclass(frozen=True)
class AlwaysBonus(ContrastiveBonus):
    """R_i += strength * a_i, whether it helped or not."""

    signal: Signal = Behaviour(pattern="^c")

    def __call__(self, batch: Batch) -> Tensor:
        reward: Tensor = batch.reward
        return reward + self.strength * batch.behaviour.to(reward.dtype)

    def formula(self) -> str:
        return f"R_i += {self.strength:g} a_i"


def separation(run: Path) -> dict[str, float]:
    """In the last fifth: how often a construction is made where it helps, and where it harms."""
    found = late_completions(run)

    def share(kind: str) -> float:
        own = [r["text"].startswith("c") for r in found if kind in r["prompt"]]
        return sum(own) / len(own) if own else 0.0

    return {"helps": share("alpha"), "harms": share("beta")}


register_task("ways-gcpo", WAYS.task)
REPRODUCTION = Reproduction(
    method="gcpo-geometryzero",
    claim="A bonus for constructions paid only where they went with success in the group, and fined where they did not, "
    "learns more than one that is always paid.",
    arms={
        "gcpo": "gcpo-geometryzero[shaping.0.signal.pattern=^c]",
        "always paid": "gcpo-geometryzero[shaping=[AlwaysBonus(),LengthBonus()]]",
        "grpo": "gcpo-geometryzero[shaping=LengthBonus()]",
    },
    metrics=(
        ACCURACY,
        AREA,
        Metric("helps", "constructions where they help, last fifth"),
        Metric("harms", "constructions where they harm, last fifth", higher=False),
    ),
    measure=separation,
    task="ways-gcpo",
    start=Lesson(WAYS.write),
    budget="60 steps",
    train={"sampling": {"max_tokens": 8}, "log": {"completions": 64}},
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="Pay is rigged: on one kind of question a construction raises the rate of right answers from 2 to 8 in 10, on "
    "the other it lowers it from 8 to 2; the kind stands in the question and must be learnt to matter. The length bonus is "
    "paid in every arm, so that only what constructions earn differs; answers are nearly all equally long. GRPO's KL term "
    "is on in every arm. All runs cost the same tokens. The bonus that is always paid is smaller than what the wrong way "
    "loses, so its best policy is the same: what is asked is how fast.",
)
