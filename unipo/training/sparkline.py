"""A curve in a few characters."""

from __future__ import annotations

import math
from collections.abc import Sequence

BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int = 24) -> str:
    """The series as bars from its lowest to its highest value; means of equal stretches where it is longer than `width`.

    A stretch without a finite value is a space; a flat series is a flat line in the middle.
    """
    n = min(width, len(values))
    means: list[float | None] = []
    for k in range(n):
        part = values[k * len(values) // n : (k + 1) * len(values) // n]
        known = [x for x in part if x is not None and math.isfinite(x)]
        means.append(sum(known) / len(known) if known else None)
    known = [x for x in means if x is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    return "".join(
        " " if x is None else BARS[3] if high == low else BARS[round((len(BARS) - 1) * (x - low) / (high - low))]
        for x in means
    )
