"""Exact numbers read from text."""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?|[+-]?\.\d+")
_LONGEST = 200


def plain_minus(text: str) -> str:
    """The text with typographic minus signs as '-'."""
    return text.replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-")


def exact_number(text: str | None) -> Fraction | None:
    """The number a text is, exactly: "46", "-1,250", "12.0", "+3"; None where it is anything else or over 200 characters.

    Full stops are decimal points and commas separate thousands.  Digits are those of ASCII.
    """
    said = plain_minus(text.strip()) if text is not None else ""
    if len(said) > _LONGEST or not said.isascii() or not _NUMBER.fullmatch(said):
        return None
    return Fraction(said.replace(",", ""))
