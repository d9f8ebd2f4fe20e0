"""What happens when a reward fails: stop with the sample in view, or skip the sample and count it.

A reward may raise, hang, die, return something that is no number, NaN, or None.  With on_error="stop" (the
default) each of these is a `RewardError` that shows the prompt, the completion and the traceback of the
reward function.  With on_error="skip" the sample gets None, which leaves every statistic and the loss, and
`Scores.events` counts it under the kind of failure.  A failure is never scored as 0: a crash would then
teach the policy to avoid whatever crashed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unipo.errors import ConfigError, RewardError, unknown
from unipo.tasks.task import Reward, Sample, Scores

OnError = Literal["stop", "skip"]

FAILURES: Mapping[str, str] = {
    "raised": "raised an exception",
    "timeout": "ran past its deadline and was killed",
    "died": "took its worker process down",
    "not_number": "returned something that is not a number",
    "non_finite": "returned NaN or infinity",
    "missing": "returned None, which this reward may not",
}
"""The kinds of failure, as they are named in `Scores.events`, and what each means."""

SHOWN = 600


@dataclass(frozen=True)
class Failure:
    """kind: a key of FAILURES.  detail: the traceback of the reward function, or the value seen."""

    kind: str
    detail: str


@dataclass(frozen=True)
class Outcome:
    """What one call of a reward function came to: a value, or a failure."""

    value: Any = None
    failure: Failure | None = None


def check_on_error(on_error: str) -> None:
    """Raise ConfigError unless `on_error` is "stop" or "skip"."""
    if on_error not in ("stop", "skip"):
        raise unknown("failure policy (on_error)", str(on_error), ("stop", "skip"))


def check_positive(owner: str, **settings: float) -> None:
    """Raise ConfigError unless every setting is a finite number above 0."""
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ConfigError(f"{owner}: {name} must be a number above 0, got {value!r}")


def as_number(value: Any) -> float | Failure | None:
    """One returned value as a float; None stays None; anything else is a Failure. bool counts as 0 or 1."""
    if value is None:
        return None
    if not isinstance(value, bool | int | float):
        return Failure("not_number", f"a {type(value).__name__}: {value!r:.200}")
    try:
        number = float(value)
    except OverflowError:
        return Failure("non_finite", "an integer too large for a float")
    return number if math.isfinite(number) else Failure("non_finite", repr(number))


def shorten(text: str, limit: int = SHOWN) -> str:
    """Text as a quoted string, its middle left out where it is longer than `limit` characters."""
    if len(text) <= limit:
        return repr(text)
    half = limit // 2
    return f"{text[:half]!r} ... {text[-half:]!r} ({len(text)} characters)"


def describe(sample: Sample) -> str:
    """The sample as an error shows it."""
    answer = "None" if sample.answer is None else shorten(sample.answer)
    return f"  prompt:     {shorten(sample.prompt)}\n  completion: {shorten(sample.text)}\n  answer:     {answer}"


def failure_error(
    name: str, failure: Failure, index: int | None, samples: Sequence[Sample], others: int = 0
) -> RewardError:
    """The error for a failure at `index` (None: of the whole batch); `others` more samples failed too."""
    where = f"sample {index} of {len(samples)}" if index is not None else f"a batch of {len(samples)}; its first sample"
    more = f" ({others} more of this call failed too)" if others else ""
    detail = "\n".join("  | " + line for line in failure.detail.strip().splitlines())
    return RewardError(
        f"reward {name!r} {FAILURES[failure.kind]} on {where}{more}\n"
        f"{describe(samples[index or 0])}\n  {failure.kind}:\n{detail}\n"
        'Mend the reward function, or set on_error="skip" (for a run: --data.bad-rewards skip) to leave such samples out and count them.'
    )


def settle(
    name: str, outcomes: Sequence[Outcome], samples: Sequence[Sample], *, on_error: OnError, allow_none: bool = True
) -> tuple[list[float | None], dict[str, int]]:
    """Apply the failure policy. Returns one float or None per sample, and how often each event was counted.

    A None that the reward was allowed to return is an abstention, counted as "abstained".  Raises RewardError
    with on_error="stop" at the first failure.
    """
    values: list[float | None] = []
    failures: dict[int, Failure] = {}
    events: dict[str, int] = {}
    for index, outcome in enumerate(outcomes):
        number = outcome.failure or as_number(outcome.value)
        if number is None:
            number = None if allow_none else Failure("missing", "None")
            if allow_none:
                events["abstained"] = events.get("abstained", 0) + 1
        if isinstance(number, Failure):
            failures[index] = number
            events[number.kind] = events.get(number.kind, 0) + 1
        values.append(None if isinstance(number, Failure) else number)
    if failures and on_error == "stop":
        first = min(failures)
        raise failure_error(name, failures[first], first, samples, others=len(failures) - 1)
    return values, events


def checked(reward: Reward, samples: Sequence[Sample]) -> Scores:
    """The reward's scores. Raises RewardError unless each list has one entry per sample."""
    scores = reward(samples)
    sizes = {"total": len(scores.total), "score": len(scores.score)}
    sizes |= {f"parts[{name!r}]": len(part) for name, part in scores.parts.items()}
    if scores.extracted:
        sizes["extracted"] = len(scores.extracted)
    for name, size in sizes.items():
        if size != len(samples):
            raise RewardError(f"reward {reward.name!r} returned {size} entries in {name} for {len(samples)} samples")
    return scores


def leaf_scores(
    name: str,
    values: list[float | None],
    *,
    extracted: list[str | None] | None = None,
    events: Mapping[str, int] | None = None,
) -> Scores:
    """Scores of a reward without components: its own values are total, score and only part."""
    found = [None] * len(values) if extracted is None else extracted
    return Scores(list(values), list(values), {name: list(values)}, list(found), dict(events or {}))


def count_events(**counts: int) -> dict[str, int]:
    """Only the events that happened."""
    return {name: count for name, count in counts.items() if count}
