r"""Maths answers: extract, parse, compare, in worker processes that can be killed.

The extraction policy is part of the reward's definition, because extraction errors, not algebra, cause most
wrong rewards.  Here it is: only the text after the last </think> counts (reasoning that never ends scores 0);
of it the last \boxed{...} and no other; a box that never closes, or is empty, scores 0; without any box, the
whole text if it is one formula, else the rules of math-verify ("final answer is", "answer:", last formula or
number), applied to the last 2000 characters.

Decided traps (each is a test):
- several boxes: only the last; several values in one box ("3 or 4") are a set and do not match the gold 3;
- "10/2" matches the gold 5: no simplification is demanded; units and currencies are dropped on both sides;
- "2,74" matches the gold 2.74 and also the pair (2, 74); as a gold, "1,2" is the pair;
- 28 and 28% match (math-verify 0.9; that is its rule, not ours); a number off by less than 1e-6 matches
  where either side is a decimal;
- an answer that cannot be computed in time (10^{10^{10}}, huge factorials) scores 0 and is counted as
  "timeout"; the worker is replaced.
Not done: answers that are letters of a choice are compared as symbols and found in a box only.
Unsure: the LaTeX grammar (latex2sympy2_extended) beyond the library's own tests.
Source: huggingface/Math-Verify (0.9.0 read; 0.8 or later); huggingface/trl: trl/rewards for "unparsable gold
is skipped, unparsable prediction is 0".
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unipo.errors import MissingExtra
from unipo.rewards.isolation import WorkerPool, file_target, pool_for
from unipo.rewards.policy import OnError, Outcome, check_on_error, check_positive, count_events, leaf_scores, settle
from unipo.rewards.thinking import final_text
from unipo.tasks.task import Sample, Scores

GRADING = file_target(Path(__file__).with_name("maths_grading.py"), "grade", search_siblings=False)
MEMORY_MB = 4096


@dataclass(frozen=True)
class Maths:
    r"""1 where the response's final answer equals the gold answer mathematically, else 0; see the module.

    None where the sample cannot be scored: no answer ("no_answer"), or a gold answer that does not parse or
    cannot be computed in time ("unparsed_gold").  A prediction that does not parse is 0.
    require_box: without a \boxed{...} the response is wrong.  seconds: deadline of one comparison: a third for
    the gold, a third for the response, the rest before the worker is killed.  A response that makes it miss the
    deadline scores 0, counted as "timeout" ("died" where it took its worker down).
    workers: processes, default one per processor up to 8.  on_error: see `unipo.rewards.policy`.
    Raises MissingExtra when made without math-verify installed.
    """

    require_box: bool = False
    seconds: float = 10.0
    workers: int | None = None
    on_error: OnError = "stop"
    name: str = "maths"

    def __post_init__(self) -> None:
        check_on_error(self.on_error)
        check_positive(self.name, seconds=self.seconds, workers=1 if self.workers is None else self.workers)
        if importlib.util.find_spec("math_verify") is None:
            raise MissingExtra("math-verify", "maths", f"the reward {self.name!r}")

    @property
    def _pool(self) -> WorkerPool:
        return pool_for(GRADING, self.workers, MEMORY_MB)

    def _call(self, gold: str, text: str) -> dict[str, Any]:
        return {"gold": gold, "text": text, "require_box": self.require_box, "soft_seconds": self.seconds / 3}

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        asked = [i for i, sample in enumerate(samples) if sample.answer is not None]
        texts = [final_text(samples[i].text, samples[i].prompt) or "" for i in asked]
        golds = [samples[i].answer or "" for i in asked]
        graded = self._pool.run([self._call(g, t) for g, t in zip(golds, texts, strict=True)], self.seconds)
        counts = {
            "timeout": sum(_failed(o, "timeout") or (o.failure is None and o.value[2]) for o in graded),
            "died": sum(_failed(o, "died") for o in graded),
        }
        self._blame(graded, golds)
        values = [Outcome(o.value[0]) if o.failure is None else o for o in graded]
        settled, failed = settle(self.name, values, [samples[i] for i in asked], on_error=self.on_error)
        total: list[float | None] = [None] * len(samples)
        extracted: list[str | None] = [None] * len(samples)
        for i, value, outcome in zip(asked, settled, graded, strict=True):
            total[i] = value
            extracted[i] = outcome.value[1] if outcome.failure is None else None
        unparsed = failed.pop("abstained", 0)
        events = count_events(no_answer=len(samples) - len(asked), unparsed_gold=unparsed, **counts, **failed)
        return leaf_scores(self.name, total, extracted=extracted, events=events)

    def _blame(self, graded: list[Outcome], golds: Sequence[str]) -> None:
        """Replace the outcomes of killed workers: None where the gold alone kills one too, else 0."""
        late = [k for k, outcome in enumerate(graded) if _failed(outcome, "timeout") or _failed(outcome, "died")]
        alone = self._pool.run([self._call(golds[k], "") for k in late], self.seconds)
        for k, outcome in zip(late, alone, strict=True):
            graded[k] = Outcome([None, None, True]) if outcome.failure else outcome


def _failed(outcome: Outcome, kind: str) -> bool:
    return outcome.failure is not None and outcome.failure.kind == kind
