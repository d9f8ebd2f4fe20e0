"""k responses to every problem, and what they say: average@k, pass@j, pass^j, maj@j, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unipo.evaluate.accuracy import accuracy_interval, spread
from unipo.evaluate.estimators import maj_at_k, pass_at_k, pass_hat_k
from unipo.policy.model import Policy
from unipo.rollout.engine import Request, Sampling
from unipo.rollout.local import LocalEngine
from unipo.tasks.task import Example, Reward
from unipo.training.prompts import Prompt
from unipo.training.source import score_groups


@dataclass(frozen=True)
class Answered:
    """One response. score: 1 is right; 0 where it could not be scored.  answer: what was extracted, or None."""

    text: str
    score: float
    answer: str | None = None
    tokens: int = 0
    truncated: bool = False

    @property
    def right(self) -> bool:
        """Whether it has the full score."""
        return self.score >= 1.0


@dataclass(frozen=True)
class Problem:
    """A problem and its responses. id: its place among the problems asked for; answer: the right one, if known."""

    id: int
    prompt: str
    answer: str | None
    responses: tuple[Answered, ...]

    @property
    def scores(self) -> list[float]:
        """The score of every response."""
        return [r.score for r in self.responses]

    @property
    def correct(self) -> list[bool]:
        """Which responses are right."""
        return [r.right for r in self.responses]

    @property
    def answers(self) -> list[str | None]:
        """The final answer of every response, None where none was found."""
        return [r.answer for r in self.responses]

    def as_dict(self) -> dict[str, Any]:
        """All of it by name, for JSON."""
        return asdict(self)


def measure(
    policy: Policy,
    prompts: Sequence[Prompt],
    examples: Sequence[Example],
    reward: Reward,
    sampling: Sampling,
    k: int,
    seed: int,
) -> list[Problem]:
    """Sample k responses to each prompt and have them scored.

    examples: all problems asked for; some of them may have no prompt.  A problem's samples depend on its place among
    them alone, so that two policies meet the same problems with the same seeds.
    """
    place = {id(e): i for i, e in enumerate(examples)}
    places = [place[id(p.example)] for p in prompts]
    groups = LocalEngine(policy).generate(
        [Request(p.ids, k, seed + i, images=p.pixels) for p, i in zip(prompts, places, strict=True)], sampling
    )
    scored = score_groups(policy, reward, prompts, groups)
    return [
        Problem(
            i,
            policy.tokenizer.decode(list(p.ids)),
            p.example.answer,
            tuple(
                Answered(text, float(mark["score"] or 0.0), mark["extracted"], len(r.tokens), bool(r.truncated))
                for text, mark, r in zip(texts, marks, group, strict=True)
            ),
        )
        for i, p, texts, marks, group in zip(places, prompts, scored.texts, scored.scores, groups, strict=True)
    ]


def values(problems: Sequence[Problem]) -> dict[str, dict[int, list[float]]]:
    """Each measure of each problem: average@k, and pass, pass_hat and majority for j = 1, 2, 4, ... k samples.

    majority is left out where responses have no answers, or the reward judges more than the answer.
    """
    k = len(problems[0].responses)
    ks = sorted({2**i for i in range(k.bit_length())} | {k})
    counts = [sum(p.correct) for p in problems]
    found = {
        "average": {k: [sum(p.scores) / k for p in problems]},
        "pass": {j: [pass_at_k(k, c, j) for c in counts] for j in ks},
        "pass_hat": {j: [pass_hat_k(k, c, j) for c in counts] for j in ks},
    }
    if _can_vote(problems):
        found["majority"] = {j: [maj_at_k(p.answers, p.correct, j) for p in problems] for j in ks}
    return found


def estimates(problems: Sequence[Problem]) -> dict[str, Any]:
    """Means over problems with their 95 % intervals over new problems, and where the uncertainty comes from.

    standard_error: of the average over new problems, and over new samples of these problems; null for one sample
    each, which cannot tell the two apart.
    """
    of, k = values(problems), len(problems[0].responses)
    average = accuracy_interval([p.scores for p in problems])
    found: dict[str, Any] = {
        "accuracy": {"accuracy": average.accuracy, "low": average.low, "high": average.high},
        **{name: _curve(of[name]) for name in ("pass", "pass_hat", "majority") if name in of},
    }
    parts = spread([p.scores for p in problems])
    found["standard_error"] = {
        "problems": parts and parts.error(len(problems), k),
        "samples": parts and parts.error_fixed(len(problems), k),
    }
    all_of_them = [r for p in problems for r in p.responses]
    found["truncated"] = sum(r.truncated for r in all_of_them) / len(all_of_them)
    found["length"] = sum(r.tokens for r in all_of_them) / len(all_of_them)
    return found


def _can_vote(problems: Sequence[Problem]) -> bool:
    """Are there answers to count, and does the reward judge a response by its answer alone?"""
    known = any(a is not None for p in problems for a in p.answers)
    return known and all(
        {r.answer for r in p.responses if r.right}.isdisjoint(
            r.answer for r in p.responses if not r.right and r.answer is not None
        )
        for p in problems
    )


def _curve(of: dict[int, list[float]]) -> dict[str, dict[str, float]]:
    """Mean over problems and its interval, for each number of samples."""
    curve = {}
    for j, per_problem in of.items():
        interval = accuracy_interval([[value] for value in per_problem])
        curve[str(j)] = {"value": interval.accuracy, "low": interval.low, "high": interval.high}
    return curve
