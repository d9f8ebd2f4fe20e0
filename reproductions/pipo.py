"""PIPO against GRPO, and against repeating every update whether it helped or not."""

from dataclasses import dataclass

from unipo.batch import Batch
from unipo.parts.guard import ImprovementGate
from unipo.reproduce import Reproduction
from unipo.reproduce.claim import ACCURACY, AREA


@dataclass(frozen=True)
class AlwaysAgain(ImprovementGate):
    """The extra update of the gate at every step, as if each batch were one deviation better than the past."""

    def improvement(self, batch: Batch) -> float | None:
        return 1.0


BASE = "source.minibatches=2,regularisers.0.beta=0.001"

REPRODUCTION = Reproduction(
    method="pipo",
    claim="Pushing again along the last update if the next batch scores better than the recent past, and a little back if "
    "worse, learns more than GRPO.",
    arms={
        "pipo": f"pipo[{BASE}]",
        "grpo": f"grpo[{BASE}]",
        "always again": f"pipo[{BASE},guard=AlwaysAgain()]",
    },
    metrics=(ACCURACY, AREA),
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="64 responses a step instead of 1,024, so the mean reward that the gate looks at is four times as noisy. The gate "
    "opens after eight of about 60 steps. The extra updates are not part of the budget of sampled tokens; the third "
    "arm makes more of them without looking.",
)
