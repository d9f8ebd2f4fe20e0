"""Which answers may be shown to a reasoning-gym scorer that evaluates text as code.

Four of its scorers call Python's `eval` on the answer and five call `sympy.parse_expr`, which is `eval` with
sympy's names.  The answer is written by the model in training, so it is let through only if it is a literal,
or an expression of a few names and functions whose powers stay small.  sympy's Integral and Derivative are not
among them: an integral that merely restates its question would otherwise be scored as solved.
Source: open-thought/reasoning-gym 0.1.25, score_answer of the datasets named below.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

EVALUATED = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
PARSED = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "exp", "log", "ln", "sqrt", "Abs", "asin", "acos", "atan", "sinh", "cosh", "tanh"}
)
_NAMES = frozenset({"pi"})
_LONGEST, _LONGEST_EXPRESSION, _LARGEST, _STEEPEST, _DEEPEST = 20_000, 1_000, 10**15, 100, 2


def may_be_scored(dataset: str, answer: str, entry: Mapping[str, Any]) -> bool:
    """Whether this answer can be given to the scorer of this dataset without running what the model wrote."""
    if len(answer) > _LONGEST:
        return False
    # The dataset's own answers are nobody's code, and some are more than the rules below allow.
    exact = (entry["answer"], *(entry.get("metadata") or {}).get("valid_answers", ()))
    if answer.strip() in {str(e).strip() for e in exact}:
        return True
    if dataset in EVALUATED:
        return _is_literal(answer)
    return _is_tame(answer) if dataset in PARSED else True


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return False
    return True


def _is_tame(text: str) -> bool:
    if len(text) > _LONGEST_EXPRESSION:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _tame(tree.body, powers=0)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False


def _tame(node: ast.expr, powers: int) -> bool:
    """powers: how many powers this node stands in the base of; their exponents multiply."""
    if isinstance(node, ast.Constant):
        return _within(node.value, _LARGEST)
    if isinstance(node, ast.Name):
        return (len(node.id) == 1 and node.id.isascii()) or node.id in _NAMES
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, (ast.USub, ast.UAdd)) and _tame(node.operand, powers)
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div)):
        return _tame(node.left, powers) and _tame(node.right, powers)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return powers < _DEEPEST and _tame(node.left, powers + 1) and _small(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return node.func.id in _FUNCTIONS and len(node.args) == 1 and _tame(node.args[0], powers)
    return False


def _small(exponent: ast.expr) -> bool:
    """An exponent without powers or calls of its own, in which no number exceeds 100 and only one product stands."""
    nodes = list(ast.walk(exponent))
    numbers = [n.value for n in nodes if isinstance(n, ast.Constant)]
    products = sum(isinstance(n, ast.Mult) for n in nodes)
    nested = any(isinstance(n, (ast.Pow, ast.Call)) for n in nodes)
    tame = all(_within(v, _STEEPEST) for v in numbers)
    return tame and products <= 1 and not nested and _tame(exponent, 0)


def _within(value: object, bound: int) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= bound
