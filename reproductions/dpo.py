"""DPO against fine-tuning on the preferred responses, with judges who are sometimes wrong."""

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ClassVar

from torch import Tensor

from unipo.batch import Batch
from unipo.parts.part import Objective
from unipo.parts.preference import pair_sides
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.weights import mean_score, sampled_scores
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.registry import register_task
from unipo.tasks.scratchpad import ScratchpadReward, scratchpad_task
from unipo.tasks.task import Example, Response


@dataclass(frozen=True)
class PreferredLikelihood(Objective):
    """Maximum likelihood of the preferred response of each pair, per token: the paper's Preferred-FT."""

    level: ClassVar[str] = "prompt"
    compares: ClassVar[int] = 2

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logp", "mask", "preference")

    def __call__(self, batch: Batch) -> Tensor:
        preferred, _ = pair_sides(batch.preference, batch)
        return -batch.layout.seq_mean(batch.logp, batch.mask)[preferred]

    def formula(self) -> str:
        return "l = -(1/T) log pi(y_w)"


def judged_task(wrong: float = 0.2, size: int = 4096, heldout: int = 96) -> DatasetTask:
    """Pairs of a right and a wrong response to scratchpad problems, of which a share is judged the wrong way round."""
    plain, rng = scratchpad_task(size=size, heldout=heldout, responses="pair"), Random("judged")

    def judged(e: Example) -> Example:
        flipped = rng.random() < wrong
        pair = tuple(Response(r.text, 1 - r.preference if flipped else r.preference) for r in e.responses)
        return Example(e.prompt, e.answer, pair, e.row, e.id)

    train = tuple(judged(e) for e in plain.train)
    return DatasetTask(f"judged({wrong:g})", train, tuple(plain.heldout), ScratchpadReward())


register_task("judged", judged_task)


def accuracy(run: Path) -> dict[str, float]:
    """Held-out accuracy of answers sampled from the trained model."""
    return {"sampled": mean_score(sampled_scores(run, "scratchpad", 512))}


REPRODUCTION = Reproduction(
    method="dpo",
    claim="Classifying preferred against rejected responses through the policy itself gives better samples than "
    "fine-tuning on the preferred ones.",
    arms={
        "dpo": "dpo",
        "preferred-ft": "dpo[objective=PreferredLikelihood()]",
        "without reference": "dpo[objective.reference_free=true]",
    },
    metrics=(Metric("sampled", "held-out accuracy of sampled answers"),),
    measure=accuracy,
    task="judged",
    budget="60 steps",
    points=0,
    search={"lr": (2e-5, 5e-5, 1e-4, 2e-4)},
    select="sampled",
    seeds=6,
    notes="32 pairs per step. The right response is preferred in 80 % of the pairs, the wrong one in the others, as "
    "annotators disagree; with a perfect judge the preferred responses would be perfect demonstrations. The untrained model "
    "answers 63 % right. The paper's comparison with PPO is not made. Steps are the budget, as nothing is sampled.",
)
