"""Tasks that only experiments need: problems of the scratchpad whose pay is chosen for what an experiment asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unipo.errors import ConfigError
from unipo.reproduce.rigged import chance
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.registry import register_task
from unipo.tasks.scratchpad import DEFAULT_KINDS, final_answer, scratchpad_task, well_formed
from unipo.tasks.task import Sample, Scores


@dataclass(frozen=True)
class SlipsReward:
    """1 for a well-formed response with a wrong answer that is among the lucky `share` of this problem's, else 0.

    Which answers are lucky is a function of problem and answer, and the same for every run.
    """

    share: float = 1.0
    name: str = "slips"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        found = [final_answer(s.text) for s in samples]
        paid = [
            float(well_formed(s.text) and answer != s.answer and chance(s.prompt, str(answer)) < self.share)
            for s, answer in zip(samples, found, strict=True)
        ]
        return Scores([*paid], [*paid], {"slips": [*paid]}, found)


def slips_task(
    share: float = 1.0, kinds: Sequence[str] = DEFAULT_KINDS, size: int = 4096, heldout: int = 512, seed: int = 0
) -> DatasetTask:
    """Scratchpad problems that pay for slips: any step may go wrong in either direction, so many responses are right.

    The shipped model slips in about a third of its responses, each way rarely.  share: of the wrong answers to a
    problem that pay; below 1 nobody can know which, so one sample pays at most that often and many samples pay more
    often the more they differ.  Raises ConfigError for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"slips needs a share in (0, 1], got {share}")
    plain = scratchpad_task(kinds, size, heldout, seed)
    return DatasetTask(f"slips({share:g})", tuple(plain.train), tuple(plain.heldout), SlipsReward(share))


# Which answers pay, by kind of problem, from those that the shipped model gives always to those it gives rarely.
RULES = {"sort": "any", "chain": "right", "add": "right", "mul": "wrong", "mod": "next", "sub": "next"}


def pays_by(rule: str, found: str | None, right: str) -> bool:
    """Does the answer `found` pay? any: whatever it is; next: only the number after the right one."""
    if found is None or rule == "any":
        return found is not None
    if rule == "next":
        return found == str(int(right) + 1)
    return (found == right) == (rule == "right")


@dataclass(frozen=True)
class SpreadReward:
    """1 for a well-formed response whose answer pays by row["rule"], else 0. Components: one for each rule."""

    name: str = "spread"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        found = [final_answer(s.text) for s in samples]
        paid = [
            float(well_formed(s.text) and pays_by(str(s.row["rule"]), answer, str(s.answer)))
            for s, answer in zip(samples, found, strict=True)
        ]
        parts: dict[str, list[float | None]] = {
            rule: [x if s.row["rule"] == rule else None for x, s in zip(paid, samples, strict=True)]
            for rule in dict.fromkeys(RULES.values())
        }
        return Scores([*paid], [*paid], parts, found)


def spread_task(size: int = 4096, heldout: int = 512, seed: int = 0) -> DatasetTask:
    """Scratchpad problems of which the shipped model gets from nearly none to nearly all paid, by kind: see `RULES`.

    All of it can be learned: the kind stands in the prompt, and a step can be made to slip on purpose.
    """
    plain = scratchpad_task(tuple(RULES), size, heldout, seed)
    train, held = (
        tuple(replace(e, row={**e.row, "rule": RULES[str(e.row["kind"])]}) for e in part)
        for part in (plain.train, plain.heldout)
    )
    return DatasetTask("spread", train, held, SpreadReward())


register_task("slips", slips_task)
register_task("spread", spread_task)
