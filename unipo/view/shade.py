"""How strongly a token is coloured by its value; the page does the same in assets/tokens.js."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from unipo.view.tokens import column_info

Shade = tuple[str, float]


def shades(column: str, values: Sequence[Any]) -> list[Shade]:
    """('plus', 'minus', 'amount' or 'none', share of full colour in [0, 1]) for each token.

    Full colour is the 95 % quantile of sizes, so that one outlier does not bleach the rest.
    """
    kind = column_info(column).kind
    sizes = sorted(abs(x) for v in values if (x := _place(v, kind)) is not None)
    scale = (sizes[math.ceil(0.95 * (len(sizes) - 1))] or sizes[-1]) if sizes else 0.0
    return [_shade(v, kind, scale) for v in values]


def _place(value: Any, kind: str) -> float | None:
    if value is None:
        return None
    return math.log(max(value, 1e-9)) if kind == "factor" else float(value)


def _shade(value: Any, kind: str, scale: float) -> Shade:
    x = _place(value, kind)
    if x is None or scale == 0:
        return "none", 0.0
    if kind == "flag":
        return ("amount", 0.6) if value else ("none", 0.0)
    sign = "amount" if kind == "amount" else "plus" if x > 0 else "minus"
    return sign, min(1.0, abs(x) / scale)
