"""What is going wrong in a run, in plain words, from the numbers it logs.

Every check compares the last steps with the first ones or with a bound that is stated in its words.  They are rules of
thumb: a run may be fine with one of them, and none of them changes what is trained.  This file reads numbers only, so
that a page can be made without loading a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Steps that are averaged at either end of a run, and how many it takes before ends are compared.
ENDS, ENOUGH = 10, 20

Series = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Alarm:
    """One thing to look at. name: of the check.  text: what was seen, why it matters, what one may do."""

    name: str
    title: str
    text: str


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the finite ones; None if there are none."""
    known = [x for x in values if x is not None and math.isfinite(x)]
    return sum(known) / len(known) if known else None


class Ends:
    """The two ends of every logged series. evaluations: held-out results in order, with `step`, `accuracy`, `low`, `high`."""

    def __init__(self, series: Series, evaluations: Sequence[Mapping[str, Any]] = ()) -> None:
        self.series, self.evaluations = series, list(evaluations)

    def last(self, name: str) -> float | None:
        """Mean of a metric over the last steps; None if it was not measured."""
        return mean(self.series.get(name, ())[-ENDS:])

    def first(self, name: str) -> float | None:
        """None until there are so many steps that the two ends do not overlap."""
        values = self.series.get(name, ())
        return mean(values[:ENDS]) if len(values) >= ENOUGH else None


def health(series: Series, evaluations: Sequence[Mapping[str, Any]] = ()) -> list[Alarm]:
    """Everything that the checks find. series: metric -> one value per step, None where a step has none."""
    ends = Ends(series, evaluations)
    return [found for check in CHECKS if (found := check(ends)) is not None]


def not_finite(ends: Ends) -> Alarm | None:
    """Any number that was nan or infinite in the last steps."""
    bad = [
        name
        for name, values in ends.series.items()
        if any(x is not None and not math.isfinite(x) for x in values[-ENDS:])
    ]
    if not bad:
        return None
    return Alarm(
        "not_finite",
        "Numbers that are not finite",
        f"In the last {ENDS} steps these were nan or infinite: {', '.join(sorted(bad)[:6])}.",
    )


def entropy_collapse(ends: Ends) -> Alarm | None:
    """Entropy below a fifth of what it was, unless it was near 0 from the start."""
    first, last = ends.first("entropy"), ends.last("entropy")
    if first is None or last is None or first < 0.02 or last > 0.2 * first:
        return None
    return Alarm(
        "entropy_collapse",
        "Entropy is collapsing",
        f"It fell from {first:.3g} to {last:.3g} nats per token. The policy hardly explores any more, so it may have "
        "stopped learning. A lower learning rate, a higher upper clip bound or an entropy term keep it longer.",
    )


def no_signal(ends: Ends) -> Alarm | None:
    """Four of five groups without variance in their rewards."""
    share = ends.last("groups/zero_variance")
    if share is None or share < 0.8:
        return None
    reward = ends.last("reward/mean")
    seen = "" if reward is None else f" The mean reward is {reward:.3g}."
    return Alarm(
        "no_signal",
        "Almost no group has a signal",
        f"In the last {ENDS} steps all answers to a prompt had the same reward for {100 * share:.0f} % of the prompts, "
        f"and these teach nothing.{seen} Prompts of another difficulty, larger groups or dynamic sampling help.",
    )


def overfitting(ends: Ends) -> Alarm | None:
    """Training reward up, held-out accuracy down by more than its interval."""
    kept = [e for e in ends.evaluations if isinstance(e.get("accuracy"), int | float)]
    if len(kept) < 2:
        return None
    best, last = max(kept[:-1], key=lambda e: e["accuracy"]), kept[-1]
    if last["accuracy"] >= best.get("low", best["accuracy"]):
        return None
    steps = ends.series.get("step", ())
    reward = ends.series.get("reward/mean", ())
    then = mean(
        [r for s, r in zip(steps, reward, strict=False) if s is not None and s <= max(best["step"], ENDS)][-ENDS:]
    )
    now = ends.last("reward/mean")
    rising = then is not None and now is not None and now > then
    seen = f", while the training reward rose from {then:.3g} to {now:.3g}" if rising else ""
    return Alarm(
        "overfitting",
        "Reward rises, held-out accuracy falls" if rising else "Held-out accuracy falls",
        f"It was {best['accuracy']:.3f} at step {best['step']} and is {last['accuracy']:.3f} at step {last['step']}, below "
        f"the interval of then{seen}. Read what is rewarded: the reward may be gamed, or the prompts learnt by heart.",
    )


def lengths_exploding(ends: Ends) -> Alarm | None:
    """Mean length doubled, and longer by 16 tokens or more."""
    first, last = ends.first("length/mean"), ends.last("length/mean")
    if first is None or last is None or last < 2 * first or last - first < 16:
        return None
    return Alarm(
        "lengths_exploding",
        "Responses grow long",
        f"Their mean length went from {first:.0f} to {last:.0f} tokens. Look whether the longer ones are better; the way "
        "the loss is averaged over tokens may favour them.",
    )


def truncation(ends: Ends) -> Alarm | None:
    """Three of ten responses cut off by max_tokens."""
    share = ends.last("truncated")
    if share is None or share < 0.3:
        return None
    return Alarm(
        "truncation",
        "Many responses are cut off",
        f"{100 * share:.0f} % of the last steps' responses reached max_tokens before they ended, so they were mostly "
        "scored without an answer.",
    )


def sampler_gap(ends: Ends) -> Alarm | None:
    """Log-probs of sampler and trainer 0.02 nats apart on average."""
    gap = ends.last("gap/mean")
    if gap is None or gap < 0.02:
        return None
    return Alarm(
        "sampler_gap",
        "Sampler and trainer disagree",
        f"Their log-probs of the same tokens differ by {gap:.3g} nats on average. Ratios are wrong by as much. Compare the "
        "precision of both, and whether the newest weights reached the sampler.",
    )


def ratio_tails(ends: Ends) -> Alarm | None:
    """One ratio in a hundred beyond 2 or below 0.5, or many tokens clipped."""
    low, high, clipped = ends.last("ratio/q01"), ends.last("ratio/q99"), ends.last("clip_fraction")
    tails = [f"1 % of the ratios lie above {high:.3g}"] if high is not None and high > 2 else []
    tails += [f"1 % lie below {low:.3g}"] if low is not None and low < 0.5 else []
    tails += [f"{100 * clipped:.0f} % of the tokens are clipped"] if clipped is not None and clipped > 0.3 else []
    if not tails:
        return None
    return Alarm(
        "ratio_tails",
        "Importance ratios have long tails",
        f"In the last {ENDS} steps {' and '.join(tails)}. The updates of one batch move the policy far: a lower learning "
        "rate or fewer updates per batch keep it near.",
    )


def unscored(ends: Ends) -> Alarm | None:
    """One response in twenty without a reward."""
    share = ends.last("unscored")
    if share is None or share < 0.05:
        return None
    return Alarm(
        "unscored",
        "Responses without a reward",
        f"{100 * share:.0f} % of the last steps' responses got no reward and were left out. events.jsonl says why.",
    )


CHECKS: tuple[Callable[[Ends], Alarm | None], ...] = (
    *(not_finite, no_signal, entropy_collapse, overfitting, lengths_exploding),
    *(truncation, sampler_gap, ratio_tails, unscored),
)
