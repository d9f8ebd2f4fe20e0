"""Arithmetic written by a model, evaluated exactly and without running it."""

from __future__ import annotations

import ast
import re
from fractions import Fraction

from unipo.tasks.exact import plain_minus

_ALLOWED = re.compile(r"[0-9+\-*/() ]+")
_LONGEST = 200


class BadExpression(ValueError):
    """Not an expression of whole numbers, + - * / and parentheses."""


def evaluate(text: str) -> tuple[Fraction, list[int]]:
    """(exact value, the numbers used from left to right) of an expression such as "(3 + 5) * 2".

    Typographic signs (x-shaped times, obelus, long minus) are read as * / -.  A minus before a number or
    parenthesis is allowed.  Nothing is evaluated by Python: only +, -, * and / over whole numbers exist here.
    Raises BadExpression: other characters, powers, over 200 characters, division by zero.
    """
    said = plain_minus(text).replace("\N{MULTIPLICATION SIGN}", "*").replace("\N{DIVISION SIGN}", "/").strip()
    if len(said) > _LONGEST or not _ALLOWED.fullmatch(said):
        raise BadExpression(f"not an arithmetic expression: {text[:60]!r}")
    try:
        tree = ast.parse(said, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadExpression(f"cannot be read: {text[:60]!r}") from error
    numbers: list[int] = []
    return _value(tree.body, numbers), numbers


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        numbers.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, numbers)
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, numbers), _value(node.right, numbers)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.Div) and right != 0:
            return left / right
    raise BadExpression("only + - * / over whole numbers, and no division by zero")
