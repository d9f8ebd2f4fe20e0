"""Tasks that only experiments need: problems of the scratchpad whose pay is rigged, to control what a group sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from unipo.errors import ConfigError
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.registry import register_task
from unipo.tasks.scratchpad import DEFAULT_KINDS, ScratchpadReward, scratchpad_task
from unipo.tasks.task import Sample, Scores

PAYS = {"always": 1.0, "never": 0.0}


@dataclass(frozen=True)
class MixtureReward:
    """The scratchpad's reward where row["pays"] is "if right"; 1 for any response where "always", 0 where "never"."""

    name: str = "mixture"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        plain = ScratchpadReward()(samples)
        rigged = [PAYS.get(str(s.row["pays"]), x) for s, x in zip(samples, plain.score, strict=True)]
        return Scores(list(rigged), rigged, {"answer": list(rigged)}, plain.extracted)


def mixture_task(
    solved: float = 0.4,
    impossible: float = 0.4,
    kinds: Sequence[str] = DEFAULT_KINDS,
    size: int = 4096,
    heldout: int = 512,
    seed: int = 0,
) -> DatasetTask:
    """Scratchpad problems of which a share is solved whatever one answers, a share never, and the rest if right.

    Held-out problems are all of the last kind, so their accuracy is that of the plain task.
    Raises ConfigError: shares outside [0, 1], or nothing left to learn.
    """
    if min(solved, impossible) < 0 or solved + impossible >= 1:
        raise ConfigError(f"mixture needs shares that leave something to learn, got {solved} and {impossible}")
    plain = scratchpad_task(kinds, size, heldout, seed)
    rng = Random(f"mixture {seed}")
    train = []
    for example in plain.train:
        at = rng.random()
        pays = "always" if at < solved else "never" if at < solved + impossible else "if right"
        train.append(replace(example, row={**example.row, "pays": pays}))
    held = [replace(e, row={**e.row, "pays": "if right"}) for e in plain.heldout]
    return DatasetTask(f"mixture({solved:g}, {impossible:g})", tuple(train), tuple(held), MixtureReward())


register_task("mixture", mixture_task)
