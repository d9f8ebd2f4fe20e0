"""Finding the final answer in a response."""

from __future__ import annotations

import re

from unipo.errors import ConfigError

OPEN, CLOSE = "<answer>", "</answer>"
TAG_INSTRUCTION = "Put the final answer between <answer> and </answer>."


def extract_answer(text: str, pattern: str | None = None) -> str | None:
    """The final answer in a response, stripped; None where there is none or it is empty.

    pattern None: what stands in the last complete <answer>...</answer>; without one, the whole text, so that
    a model that was asked for the bare answer needs no tags.
    pattern given: its last match, group 1 if it has groups (`.` also matches line ends); no match, no answer.
    """
    if pattern is None:
        found: str | None = last_tagged(text)
        return (text if found is None else found).strip() or None
    matches = list(compiled(pattern).finditer(text))
    if not matches:
        return None
    last = matches[-1]
    return (last.group(1 if last.re.groups else 0) or "").strip() or None


def last_tagged(text: str) -> str | None:
    """What stands in the last complete <answer>...</answer>, or None. Linear in the length, unlike a lazy regex."""
    end = text.rfind(CLOSE)
    start = text.rfind(OPEN, 0, end) if end >= 0 else -1
    return text[start + len(OPEN) : end] if start >= 0 else None


def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern, or ConfigError saying where it is wrong; call it when a reward is made, not when it scores."""
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(f"extraction pattern {pattern!r} is no regular expression: {error}") from error
