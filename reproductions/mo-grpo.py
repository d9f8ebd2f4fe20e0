"""MO-GRPO against GRPO on one of the scores: do all scores rise?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unipo.compare.outcome import lines
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.logs import late
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.registry import register_task
from unipo.tasks.scratchpad import ScratchpadReward, scratchpad_task
from unipo.tasks.task import Sample, Scores

LONGEST, FIRST = 48, 3
AXES = ("right", "brief", "mild")


@dataclass(frozen=True)
class AxesReward:
    """right: 1 or 0; brief: 1 - length/48; mild: share of the text's digits that are below 7. The reward is `right`."""

    name: str = "axes"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        plain = ScratchpadReward()(samples)
        digits = [[c for c in s.text if c.isdigit()] for s in samples]
        mild = [sum(c < "7" for c in found) / max(1, len(found)) for found in digits]
        brief = [1 - min(s.length, LONGEST) / LONGEST for s in samples]
        return Scores(plain.score, plain.score, {"right": plain.score, "brief": brief, "mild": mild}, plain.extracted)


def axes_task(size: int = 4096, heldout: int = 512) -> DatasetTask:
    """Scratchpad problems with three scores that pull in different directions."""
    plain = scratchpad_task(size=size, heldout=heldout)
    return DatasetTask("axes", tuple(plain.train), tuple(plain.heldout), AxesReward())


register_task("axes", axes_task)


def gains(run: Path) -> dict[str, float]:
    """How far each score rose from the first steps to the last fifth: the least of them, and their mean."""
    metrics = lines(run, "metrics")[:FIRST]
    rise = [late(run, f"reward/{a}") - sum(m[f"reward/{a}"] for m in metrics) / len(metrics) for a in AXES]
    return {"least": min(rise), "mean_gain": sum(rise) / len(rise)}


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
        Metric("mean_gain", "mean rise of the three scores", kind="number"),
        ACCURACY,
    ),
    measure=gains,
    task="axes",
    budget="60 steps",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    select="mean_gain",
    notes="Three scores computed by rule (right, brief, few large digits) instead of a reward model with four heads; they "
    "conflict, since what is brief or free of large digits is often wrong. Equal weights. Steps are the budget, as shorter responses would else buy more of them. The search takes the mean rise "
    "of all scores for every arm. The KL is GRPO's 0.04.",
)
