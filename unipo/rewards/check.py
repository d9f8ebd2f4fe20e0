"""A public check that any reward can be put through before it meets a policy."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from unipo.errors import RewardError, UnipoError
from unipo.rewards.policy import describe
from unipo.rewards.registry import RewardSpec, resolve_reward
from unipo.tasks.task import Reward, Sample, Scores

DEFAULT_SAMPLES = (
    Sample("What is 6 times 7?", "6 times 7 is 42. The answer is \\boxed{42}", "42", {"answer": "42"}, 16),
    Sample("What is 6 times 7?", "The answer is 41.", "42", {"answer": "42"}, 8),
    Sample("What is 1 + 1?", "<think>\n1 + 1\n</think>\n<answer>\n2\n</answer>", "2", {"answer": "2"}, 20),
    Sample("What is 1 + 1?", "<think>\nlet me see", "2", {"answer": "2"}, 6, truncated=True),
)


@dataclass(frozen=True)
class CheckReport:
    """What `check_reward` found. reward: its name.  passed: the checks, in order.  samples: how many were scored.

    unscored: how many of them the reward declined to score (None).
    """

    reward: str
    passed: tuple[str, ...]
    samples: int
    unscored: int

    def __str__(self) -> str:
        lines = "\n".join(f"  ok  {check}" for check in self.passed)
        return f"reward {self.reward!r}: {len(self.passed)} checks on {self.samples} samples, {self.unscored} unscored\n{lines}"


def edge_samples(base: Sample) -> dict[str, Sample]:
    """Awkward samples made of an ordinary one, by what is awkward about them."""
    long = "so the answer might be 7, or 12, or not " * 2500
    strange = "Ответ: ٤٢ 🙂 \u0000 \u202e \ud83d {}[]$\\boxed{½}\r\n"
    return {
        "an empty completion": replace(base, text="", length=1),
        "a completion of 100 kB": replace(base, text=long, length=25_000, truncated=True),
        "unusual characters": replace(base, text=strange, length=30),
        "no answer": replace(base, answer=None),
    }


def check_reward(reward: RewardSpec, samples: Sequence[Sample] | None = None) -> CheckReport:
    """Put a reward through the checks every reward must pass, and return a report of them.

    Checks: one finite number or None per sample, in every list it returns; an empty batch; an empty
    completion, 100 kB of text, unusual characters, and a sample without an answer, scored without raising;
    the same numbers when called again, and when the samples come in another order.
    samples: yours, if the reward needs fields of your data rows; the awkward ones are made from the first.
    Raises RewardError saying which check failed and on which sample.
    """
    made = resolve_reward(reward)
    ordinary = list(DEFAULT_SAMPLES if samples is None else samples)
    if not ordinary:
        raise RewardError("check_reward needs at least one sample")
    passed = ["one finite number or None per sample"]
    scores = _scored(made, ordinary, passed[0])
    _scored(made, [], "an empty batch")
    passed.append("an empty batch")
    edges = edge_samples(ordinary[0])
    for what, sample in edges.items():
        _scored(made, [sample], what)
        passed.append(what)
    everything = ordinary + list(edges.values())
    first = _scored(made, everything, "the same numbers when called again")
    _same(made, everything, first, _scored(made, everything, "the same numbers when called again"), "when called again")
    passed.append("the same numbers when called again")
    order = list(range(len(everything)))
    random.Random(0).shuffle(order)
    shuffled = _scored(made, [everything[i] for i in order], "the same numbers in another order")
    back = [shuffled.total[order.index(i)] for i in range(len(everything))]
    _same(made, everything, first, replace(shuffled, total=back), "in another order")
    passed.append("the same numbers in another order")
    unscored = scores.total.count(None) + sum(total is None for total in first.total[len(ordinary) :])
    return CheckReport(made.name, tuple(passed), len(everything), unscored)


def _scored(reward: Reward, samples: Sequence[Sample], what: str) -> Scores:
    where = f"reward {reward.name!r} fails the check {what!r}"
    try:
        scores = reward(samples)
    except UnipoError as error:
        raise RewardError(f"{where}:\n{error}") from error
    except Exception as error:
        raise RewardError(f"{where}: it raised {type(error).__name__}: {error}") from error
    if not isinstance(scores, Scores):
        raise RewardError(f"{where}: it returned a {type(scores).__name__} instead of Scores")
    lists = {"total": scores.total, "score": scores.score, **{f"parts[{k!r}]": v for k, v in scores.parts.items()}}
    for name, values in lists.items():
        if len(values) != len(samples):
            raise RewardError(f"{where}: {name} has {len(values)} entries for {len(samples)} samples")
        for sample, value in zip(samples, values, strict=True):
            if value is not None and (not isinstance(value, int | float) or not math.isfinite(value)):
                raise RewardError(f"{where}: {name} holds {value!r} for\n{describe(sample)}")
    if scores.extracted and len(scores.extracted) != len(samples):
        raise RewardError(f"{where}: extracted has {len(scores.extracted)} entries for {len(samples)} samples")
    return scores


def _same(reward: Reward, samples: Sequence[Sample], first: Scores, second: Scores, what: str) -> None:
    for sample, a, b in zip(samples, first.total, second.total, strict=True):
        if a != b:
            raise RewardError(
                f"reward {reward.name!r} gives other numbers {what}: {a!r}, then {b!r}, for\n{describe(sample)}"
            )
