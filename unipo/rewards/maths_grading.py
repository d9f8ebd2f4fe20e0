r"""Reading and comparing mathematical answers with math-verify. Runs in a worker process, never in the trainer.

Imports math_verify, and nothing of unipo, so a worker is ready in about half a second.  Times out softly
with an alarm signal (this is the main thread of its own process); what no signal interrupts is killed from
outside.  math-verify's own timeouts, which swallow the fact that they fired, are off.
"""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NoReturn

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns at every answer that does not parse

TAIL = 2000
"""Characters at the end of an unboxed response in which an answer is looked for."""

_DIGITS = r"(?:\d{1,3}(?:[ ,]\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_WORD = r"\s(?!(?:or|and|to|by|mod|over)\b)[A-Za-z]{2,}\.?"
_UNIT = rf"(?:\\?%|(?:[Pp]ercent(?:age)?|[Pp]ct)\b|(?:{_WORD}){{1,3}}(?:\^?\{{?\d\}}?)?)"
_PLAIN = re.compile(rf"[+]?(?P<sign>[-−]?)\s*\\?[$€£¥]?(?P<digits>{_DIGITS})\s*(?P<unit>{_UNIT})?\.?")
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")
_SCIENTIFIC = re.compile(r"(?P<digits>[-+]?\d+(?:\.\d+)?)[eE](?P<exponent>[-+]?\d+)")
_DELIMITED = re.compile(r"\$.*\$|\\\(.*\\\)|\\\[.*\\\]", re.DOTALL)
_COMMAND = re.compile(r"\\(?:text|mbox|mathrm|textbf|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
_LINK = re.compile(r"\b(?:or|and)\b")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_LATEX, _EXPRESSION = LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()


def last_box(text: str) -> str | None:
    r"""What stands in the last \boxed{...} (or \fbox{...}, or \boxed 3); None without one; "" if it never closes.

    Only the last box counts, so that several guesses in several boxes are one guess.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    if text[start : start + 1] != "{":
        bare = re.match(r"[^\s$]+", text[start:])
        return bare[0] if bare else ""
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[start + 1 : start + match.start()]
    return ""


class OutOfTime(BaseException):
    """The soft deadline has passed. No Exception, so that no handler inside sympy takes it for one of its own."""


def _ring(signum: int, frame: Any) -> NoReturn:
    raise OutOfTime


@contextmanager
def soft_deadline(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block when it takes longer than this. Main thread only."""
    before = signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _words(text: str, letters: int) -> int:
    """Runs of at least this many letters that are not part of a LaTeX command."""
    return len(re.findall(rf"[A-Za-z]{{{letters},}}", _COMMAND.sub(" ", text)))


def _parse(text: str) -> list[Any]:
    configs = (_LATEX, _EXPRESSION)
    parsed: list[Any] = parse(text, configs, fallback_mode="no_fallback", parsing_timeout=None)
    return parsed


def read_answer(text: str) -> list[Any]:
    """Parse a text that is an answer and nothing else: a gold answer or the content of a box.

    A number with a percent sign, a currency or a unit is that number; text with math delimiters, or with
    prose around the answer, is left to math-verify's own extraction; anything else is one LaTeX formula.
    Returns [] if nothing parses.  (Without the last rule math-verify reads the gold 3\\sqrt{2} as 3.)
    """
    answer = text.strip()
    number = _PLAIN.fullmatch(answer)
    if number:
        percent = "%" if number["unit"] and re.match(r"\\?%|[Pp]", number["unit"]) else ""
        return _parse(("-" if number["sign"] else "") + number["digits"] + percent)
    power = _SCIENTIFIC.fullmatch(answer)
    if power:
        return _parse(rf"${power['digits']}\times10^{{{power['exponent']}}}$")
    if _DELIMITED.search(answer) or _words(answer, 3) >= 2:
        return _parse(answer[-TAIL:])
    return _parse(f"${answer}$") or _parse(answer)


@lru_cache(maxsize=4096)
def read_gold(gold: str) -> tuple[Any, ...]:
    """Parse the ground truth: after the last "####" (GSM8K), in its last box, or as it stands. () if nothing parses."""
    text = gold.rpartition("####")[2]
    box = last_box(text)
    return tuple(read_answer(text if box is None else box))


def read_prediction(text: str, require_box: bool) -> tuple[list[Any], str | None]:
    """Parse the final answer of a response. Returns its readings ([] if none) and the answer as text (or None).

    The last box if there is one, else, unless require_box, the whole text if it is nothing but a formula, else what
    math-verify extracts from the end of it.  An answer like 2,74 has two readings, the number 2.74 and the pair.
    """
    box = last_box(text)
    if box is None and require_box:
        return [], None
    answer = (text if box is None else box).strip()
    if not answer:
        return [], None
    commas = _DECIMAL_COMMA.fullmatch(answer) and not _PLAIN.fullmatch(answer)
    readings = _parse(answer) if commas else []
    is_formula = len(answer) <= 200 and "\n" not in answer and not _words(_LINK.sub(" ", answer), 2)
    if box is not None or is_formula or _PLAIN.fullmatch(answer):
        readings += read_answer(answer)
        return readings, answer[:TAIL] if readings else None
    readings = _parse(answer[-TAIL:])
    return readings, str(readings[0])[:TAIL] if readings else None


def grade(gold: str, text: str, require_box: bool, soft_seconds: float) -> list[Any]:
    """Grade one response. Returns [value, extracted, whether it ran out of time].

    value: 1.0 or 0.0, or None where the gold does not parse in time.  text: the response after its reasoning;
    "" is wrong.  soft_seconds: for reading the gold, and again for reading and comparing the response.
    The order of arguments matters to math-verify: an inequality echoed from the question is no answer to a
    gold interval, while the reverse is accepted.
    """
    try:
        with soft_deadline(soft_seconds):
            golds = list(read_gold(gold))
    except OutOfTime:
        return [None, None, True]
    if not golds:
        return [None, None, False]
    extracted = None
    try:
        with soft_deadline(soft_seconds):
            readings, extracted = read_prediction(text, require_box)
            right = bool(readings) and verify(golds, readings, timeout_seconds=None)
    except OutOfTime:
        return [0.0, extracted, True]
    return [float(right), extracted, False]
