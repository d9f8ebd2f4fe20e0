"""SEED-GRPO against Dr. GRPO where the questions that split the group are also the badly labelled ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unipo.reproduce import Reproduction
from unipo.reproduce.rigged import chance
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.registry import register_task
from unipo.tasks.scratchpad import ScratchpadReward, scratchpad_task
from unipo.tasks.task import Sample, Scores

DOUBTFUL = ("sort", "reverse")  # long answers, of which a group finds many different ones


@dataclass(frozen=True)
class FlippedReward:
    """The scratchpad's reward, turned round for one in ten (question, response) pairs of the doubtful kinds."""

    name: str = "flipped"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        plain = ScratchpadReward()(samples)
        flipped = [
            1 - (x or 0.0) if s.row.get("noisy") and chance(str(s.row["question"]), s.text) < 0.1 else x
            for s, x in zip(samples, plain.score, strict=True)
        ]
        return Scores(list(flipped), flipped, {"answer": list(flipped)}, plain.extracted)


def doubtful(size: int = 4096, heldout: int = 512, seed: int = 0) -> DatasetTask:
    """Held-out answers are judged without noise."""
    plain = scratchpad_task(("add", "sort", "sub", "reverse"), size, heldout, seed)
    train = tuple(replace(e, row={**e.row, "noisy": e.row["kind"] in DOUBTFUL}) for e in plain.train)
    return DatasetTask("doubtful", train, plain.heldout, FlippedReward())


register_task("doubtful", doubtful)
REPRODUCTION = Reproduction(
    method="seed-grpo",
    claim="Smaller steps on questions whose sampled answers differ in meaning, full steps on the others, learn more than "
    "Dr. GRPO.",
    arms={
        "seed-grpo": "seed-grpo[credit.0.alpha=0.7]",
        "dr-grpo": "dr-grpo",
        "alpha of the port": "seed-grpo",
    },
    task="doubtful",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    budget="80000 tokens",
    notes="Half of the questions (sort, reverse) have many different answers, and for them the verifier is wrong about one "
    "response in ten; held-out answers are judged rightly. The paper's alpha is not known: 0.7 here, and as third arm the "
    "0.0417 of a third-party port, whose weights lie between 0.96 and 1. Equal sampled tokens.",
)
