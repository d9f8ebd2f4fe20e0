"""OTR against supervised fine-tuning on demonstrations of which some are wrong."""

from pathlib import Path
from random import Random

from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.weights import mean_score, sampled_scores
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.registry import register_task
from unipo.tasks.scratchpad import KINDS, ScratchpadReward, scratchpad_task
from unipo.tasks.task import Example, Response

TRAINED, OTHER = ("add", "sub", "mul"), ("mod", "chain", "sort", "max", "reverse")


def shown_task(slips: float = 0.1, size: int = 4096, heldout: int = 96) -> DatasetTask:
    """Worked problems of three kinds; a share of those to learn from have a wrong step, those held out have none."""
    plain, rng = scratchpad_task(TRAINED, size, heldout), Random("shown")

    def worked(e: Example, rate: float) -> Example:
        text = KINDS[e.row["kind"]].demonstration(rng, e.row["question"], rate)
        return Example(e.prompt, e.answer, (Response(text),), e.row, e.id)

    train, held = (tuple(worked(e, r) for e in part) for part, r in ((plain.train, slips), (plain.heldout, 0.0)))
    return DatasetTask(f"shown({slips:g})", train, held, ScratchpadReward())


register_task("shown", shown_task)


def accuracies(run: Path) -> dict[str, float]:
    """Accuracy of sampled answers, to the kinds that were shown and to the others, and the mean of the two."""
    spec = {
        name: f"scratchpad?kinds={list(kinds)}".replace("'", '"') for name, kinds in (("in", TRAINED), ("out", OTHER))
    }
    found = {name: mean_score(sampled_scores(run, task, 255)) for name, task in spec.items()}
    return {**found, "both": (found["in"] + found["out"]) / 2}


REPRODUCTION = Reproduction(
    method="otr",
    claim="Learning demonstrations by policy gradient on one sampled token per place generalises better than supervised "
    "fine-tuning, in the domain and outside of it.",
    arms={"otr": "otr", "sft": "sft", "dft": "sft[objective.dynamic=true]"},
    metrics=(
        Metric("both", "held-out accuracy of sampled answers, mean of shown and other kinds"),
        Metric("in", "the same, kinds that were shown"),
        Metric("out", "the same, other kinds"),
    ),
    measure=accuracies,
    task="shown",
    budget="60 steps",
    points=0,
    search={"lr": (5e-5, 1e-4, 2e-4, 4e-4)},
    select="both",
    seeds=6,
    notes="64 demonstrations per step, of three kinds of sums, 10 % of them with a wrong step; the model knows all eight "
    "kinds and slips in a third to a half of its answers. Steps are the budget, as nothing is sampled: OTR draws 256 tokens "
    "at every place from logits that are there anyway. DFT is what OTR comes to on average at a temperature of 1.",
)
