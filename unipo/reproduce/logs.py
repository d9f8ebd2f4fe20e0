"""Numbers that several reproductions read from the logs of a finished run."""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from unipo.compare.outcome import curve, lines


def late(run: Path, name: str, share: float = 0.2) -> float:
    """Mean of a metric over the last share of the steps that have it. 0 where no step has it."""
    found = [float(m[name]) for m in lines(run, "metrics") if name in m]
    last = found[-max(1, round(share * len(found))) :]
    return sum(last) / len(last) if last else 0.0


def late_completions(run: Path, share: float = 0.2) -> list[dict[str, Any]]:
    """The logged responses of the last share of the steps, counted up to the last that has some; of one step at least."""
    records = lines(run, "completions")
    last = max(r["step"] for r in records)
    return [r for r in records if r["step"] > last - max(1, int(share * last))]


def fifths(run: Path) -> list[list[dict[str, Any]]]:
    """The logged responses by fifths of the steps, in order; a fifth without any is left out."""
    records = lines(run, "completions")
    last = max(r["step"] for r in records)
    found = [[r for r in records if 5 * (r["step"] - 1) // last == k] for k in range(5)]
    return [part for part in found if part]


def entropy_at(run: Path, level: float, window: int = 1) -> float:
    """Entropy of the sampled tokens, in nats, where the held-out score first rises through `level`.

    By straight lines between evaluations; the entropy of an evaluation is the mean of the steps at most `window`
    away.  A run that never gets there gives the entropy at its best score, one that starts above that at its start.
    """
    metrics = [(int(m["step"]), float(m["entropy"])) for m in lines(run, "metrics") if "entropy" in m]
    points = curve(run)

    def entropy(step: int) -> float:
        near = [e for s, e in metrics if abs(s - step) <= window]
        if not near:
            near = [min(metrics, key=lambda m: abs(m[0] - step))[1]] if metrics else [0.0]
        return sum(near) / len(near)

    for before, after in pairwise(points):
        if before.score < level <= after.score:
            at = (level - before.score) / (after.score - before.score)
            return entropy(before.steps) + at * (entropy(after.steps) - entropy(before.steps))
    best = points[0] if points[0].score >= level else max(points, key=lambda p: p.score)
    return entropy(best.steps)


def entropies(run: Path) -> dict[str, float]:
    """Entropy at a held-out score of 90 %, and over the last fifth."""
    return {"entropy_at": entropy_at(run, 0.9), "entropy_end": late(run, "entropy")}


def dropped(run: Path) -> dict[str, float]:
    """Share of tokens that a gate on the mismatch drops, mean over the run; 0 without a gate."""
    return {"dropped": late(run, "mismatch/dropped", share=1.0)}


def fall(run: Path) -> dict[str, float]:
    """The largest fall of the held-out score below its best so far."""
    scores = [p.score for p in curve(run)]
    return {"fall": max(best - now for best, now in zip(accumulate(scores, max), scores, strict=True))}
