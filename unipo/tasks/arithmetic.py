"""Plain sums: a + b, a - b, a * b and chains of them, with an exact scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from unipo.errors import ConfigError, RewardError
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.exact import exact_number
from unipo.tasks.extract import TAG_INSTRUCTION, compiled, extract_answer
from unipo.tasks.task import Example, Sample, Scores

PROMPT = "Calculate {expression}. " + TAG_INSTRUCTION
_OPERATORS = "+-*"
_SHUFFLED = 1_000_000


@dataclass(frozen=True)
class ArithmeticReward:
    """1 if the extracted answer is the number in `Sample.answer`, compared exactly; 0 for all else.

    "1,024", "1024.0" and "+1024" are the number 1024; text around the number is not.
    extract: see `unipo.tasks.extract.extract_answer`.
    """

    extract: str | None = None
    name: str = "arithmetic"

    def __post_init__(self) -> None:
        if self.extract is not None:
            compiled(self.extract)

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        found = [extract_answer(s.text, self.extract) for s in samples]
        score: list[float | None] = [float(exact_number(a) == _truth(s)) for a, s in zip(found, samples, strict=True)]
        return Scores(total=list(score), score=score, parts={"correct": list(score)}, extracted=found)


def _truth(sample: Sample) -> object:
    truth = exact_number(sample.answer)
    if truth is None:
        raise RewardError(f"arithmetic needs a number as the answer of every prompt, got {sample.answer!r}")
    return truth


def arithmetic_task(
    *,
    size: int = 1000,
    heldout: int = 200,
    operators: str = "+-",
    terms: int = 2,
    min_digits: int = 1,
    max_digits: int = 2,
    prompt: str = PROMPT,
    extract: str | None = None,
    seed: int = 0,
) -> DatasetTask:
    """Distinct sums with whole operands, drawn uniformly from all there are at this difficulty.

    operators: which of + - * may stand between two operands; multiplication binds first, as usual.
    terms: operands per sum.  min_digits, max_digits: of each operand (0 is a one-digit number).
    prompt: text with {expression}; "{expression}=" suits a model trained from scratch.
    The held-out sums come first from the seed's stream, so they do not change with `size`.  3 + 4 and
    4 + 3 are different prompts and may stand on different sides.
    Raises ConfigError: settings out of range, or more sums asked for than exist.
    """
    if not operators or set(operators) - set(_OPERATORS) or len(set(operators)) != len(operators):
        raise ConfigError(f"operators must be distinct signs out of {_OPERATORS!r}, got {operators!r}")
    if terms < 2 or not 1 <= min_digits <= max_digits or size < 1 or heldout < 0:
        raise ConfigError(
            "arithmetic needs terms >= 2, 1 <= min_digits <= max_digits, size >= 1, heldout >= 0; got "
            f"terms={terms}, min_digits={min_digits}, max_digits={max_digits}, size={size}, heldout={heldout}"
        )
    if "{expression}" not in prompt:
        raise ConfigError(f"prompt must contain {{expression}}, got {prompt!r}")
    low = 0 if min_digits == 1 else 10 ** (min_digits - 1)
    operands = range(low, 10**max_digits)
    space = len(operands) ** terms * len(operators) ** (terms - 1)
    if size + heldout > space:
        raise ConfigError(f"{size} + {heldout} sums were asked for, but only {space} exist with these settings")
    examples = [
        _example(place, _expression(index, operands, operators, terms), prompt)
        for place, index in enumerate(_distinct(Random(seed), space, size + heldout))
    ]
    reward = ArithmeticReward(extract)
    return DatasetTask("arithmetic", tuple(examples[heldout:]), tuple(examples[:heldout]), reward)


def _distinct(rng: Random, space: int, count: int) -> list[int]:
    """`count` distinct numbers below `space`; asking for more of them keeps the first ones."""
    if space <= _SHUFFLED:
        order = list(range(space))
        rng.shuffle(order)
        return order[:count]
    drawn: dict[int, None] = {}
    while len(drawn) < count:
        drawn[rng.randrange(space)] = None
    return list(drawn)


def _expression(index: int, operands: range, operators: str, terms: int) -> str:
    """The index-th expression: its digits in mixed radix are the operands and operators from left to right."""
    index, digit = divmod(index, len(operands))
    text = str(operands[digit])
    for _ in range(terms - 1):
        index, sign = divmod(index, len(operators))
        index, digit = divmod(index, len(operands))
        text += f" {operators[sign]} {operands[digit]}"
    return text


def _value(expression: str) -> int:
    """Value of a chain written with spaces, * before + and -."""
    tokens = expression.split()
    total, product, sign = 0, int(tokens[0]), 1
    for operator, operand in zip(tokens[1::2], tokens[2::2], strict=True):
        if operator == "*":
            product *= int(operand)
        else:
            total, product, sign = total + sign * product, int(operand), 1 if operator == "+" else -1
    return total + sign * product


def _example(place: int, expression: str, prompt: str) -> Example:
    answer = str(_value(expression))
    return Example(
        prompt.replace("{expression}", expression),
        answer,
        row={"expression": expression, "answer": answer},
        id=place,
    )
