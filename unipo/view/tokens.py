"""The token-level columns of a recorded response, and those that follow from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unipo.columns import COLUMNS

Column = Sequence[Any]


@dataclass(frozen=True)
class Shown:
    """How a column is shown. kind: signed (colours around 0), factor (around 1), amount (from 0), flag."""

    label: str
    kind: str
    meaning: str


_KNOWN: dict[str, Shown] = {
    "advantage": Shown("advantage", "signed", "how much the update wants more (or less) of this token"),
    "credit_weight": Shown("credit weight", "factor", "this token's advantage over its response's"),
    "ratio": Shown(
        "ratio", "factor", "probability under the updated policy over the old one, at the last update that saw it"
    ),
    "clipped": Shown("clipped", "flag", "the objective cut its gradient off at the last update"),
    "behaviour_entropy": Shown("entropy", "amount", "of the distribution it was sampled from, nats"),
    "entropy": Shown("entropy at the update", "amount", "of the policy's distribution in the update's pass, nats"),
    "behaviour_logp": Shown("log-prob", "amount", "under the policy that sampled it"),
    "old_logp": Shown("old log-prob", "amount", "under the policy at the start of the update batch"),
    "new_logp": Shown("new log-prob", "amount", "under the policy in the last update's pass that saw it"),
    "reference_logp": Shown("reference log-prob", "amount", "under the reference policy"),
    "kl_reference": Shown("KL to reference", "signed", "log-prob under the policy minus under the reference, nats"),
    "evidence_delta": Shown(
        "evidence delta", "signed", "log-prob with the evidence minus without it (or with a wrong one)"
    ),
    "gap": Shown("sampler-trainer gap", "signed", "trainer's log-prob minus the sampler's"),
    "trainable": Shown("trainable", "flag", "written by the policy, not by a tool"),
    "mask": Shown("counts in the loss", "flag", "trainable, scored and kept by every selection"),
}


def column_info(name: str) -> Shown:
    """How a column is shown, also one that a part of somebody else added."""
    if name in _KNOWN:
        return _KNOWN[name]
    meaning = COLUMNS[name].meaning if name in COLUMNS else "a column that a part of this method adds"
    return Shown(name.replace("_", " "), "flag" if meaning.startswith("bool") else "signed", meaning)


def known_columns() -> dict[str, Shown]:
    """Those that a page offers first, in their order."""
    return dict(_KNOWN)


def with_derived(columns: Mapping[str, Any], n: int) -> dict[str, list[Any]]:
    """All columns of n tokens as lists, with those that follow from others, the best known ones first."""
    full = {name: _full(value, n) for name, value in columns.items()}
    policy = full.get("new_logp") or full.get("old_logp") or full.get("behaviour_logp")
    derived = {
        "ratio": _pairwise(full.get("new_logp"), full.get("old_logp"), _ratio),
        "kl_reference": _pairwise(policy, full.get("reference_logp"), _difference),
        "evidence_delta": _pairwise(full.get("evidence_logp"), full.get("counter_logp"), _difference),
        "gap": _pairwise(full.get("new_logp"), full.get("behaviour_logp"), _difference)
        if "old_logp" not in full
        else None,
    }
    full = {name: values for name, values in derived.items() if values is not None} | full
    first = [name for name in _KNOWN if name in full]
    return {name: full[name] for name in [*first, *sorted(set(full) - set(first))]}


def _full(value: Any, n: int) -> list[Any]:
    """A column as a list; one that is the same for all tokens is written as a single number."""
    values = list(value) if isinstance(value, list) else [value] * n
    return (values + [None] * n)[:n]


def _pairwise(a: Column | None, b: Column | None, how: Callable[[float, float], float]) -> list[Any] | None:
    if not a or not b:
        return None
    return [None if x is None or y is None else float(f"{how(x, y):.4g}") for x, y in zip(a, b, strict=True)]


def _difference(x: float, y: float) -> float:
    return x - y


def _ratio(x: float, y: float) -> float:
    return math.exp(max(-20.0, min(20.0, x - y)))
