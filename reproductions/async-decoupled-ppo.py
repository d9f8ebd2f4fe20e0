"""Decoupled PPO on batches that are several updates old, against PPO clipped to the policy that sampled them."""

from dataclasses import dataclass

from torch import Tensor

import unipo.parts.asynchronous  # noqa: F401  (the source Asynchronous)
from unipo.batch import Batch
from unipo.parts.objective import Clipped
from unipo.parts.part import Pieces
from unipo.reproduce import Reproduction
from unipo.reproduce.claim import ACCURACY, AREA


@dataclass(frozen=True)
class ClippedToSampler(Clipped):
    """PPO as it is usually written: its old policy is the one that sampled, however old."""

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple("behaviour_logp" if n == "old_logp" else n for n in super().needs)

    def __call__(self, batch: Batch) -> Tensor:
        return super().__call__(batch.with_columns(None, old_logp=batch.behaviour_logp))

    def pieces(self, batch: Batch) -> Pieces:
        return super().pieces(batch.with_columns(None, old_logp=batch.behaviour_logp))

    def formula(self) -> str:
        return super().formula().replace("pi/pi_old", "pi/mu")


REPRODUCTION = Reproduction(
    method="async-decoupled-ppo",
    claim="On samples several versions old, clipping against the policy just before the update and weighing against the "
    "one that sampled learns more than PPO, which clips against the one that sampled.",
    arms={
        "decoupled": "async-decoupled-ppo[source.staleness=8,source.minibatches=4]",
        "ppo": "async-decoupled-ppo[source.staleness=8,source.minibatches=4,credit=[],objective=ClippedToSampler()]",
        "synchronous": "grpo-token[source.minibatches=4]",
    },
    metrics=(ACCURACY, AREA),
    search={"lr": (5e-5, 1e-4, 2e-4)},
    notes="Batches are 8 versions old when they are trained on, and every batch makes four updates; what still waits at the "
    "end of a run is neither trained on nor counted. Group-normalised advantages instead of a critic, as in the authors' "
    "runs on mathematics. Nothing overlaps in time here, so the claim about speed is not tested. The third arm samples "
    "with the present weights.",
)
