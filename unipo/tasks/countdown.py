"""The numbers game: reach a target from a few numbers with + - * /, each number used once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from unipo.errors import ConfigError, RewardError
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.expression import BadExpression, evaluate
from unipo.tasks.extract import TAG_INSTRUCTION, compiled, extract_answer
from unipo.tasks.task import Example, Sample, Scores

PROMPT = (
    "Using the numbers {numbers}, write an expression that equals {target}. You may use +, -, * and /, and "
    "{rule}. " + TAG_INSTRUCTION + " For example: <answer>(1 + 2) * 3</answer>"
)
_RULES = {True: "each number must be used exactly once", False: "each number may be used at most once"}
_OPERATORS = "+-*/"
_TRIES = 2000
_EQUALS = re.compile(r"\s*=\s*(-?\d+)\s*$")


@dataclass(frozen=True)
class CountdownReward:
    """score: 1 if the extracted expression has exactly the target's value and uses the numbers as the rules say.

    use_all: every number exactly once; otherwise each at most once.  valid_credit: reward (not score) of an
    expression that keeps to the rules about numbers but misses the target.  "3 * 4 = 12" is read as "3 * 4"
    if what follows the sign is the target.  Needs row["numbers"] and row["target"].
    parts: "correct" and "valid" (the numbers were used as the rules say), each 0 or 1.
    Source of the game as a task of reinforcement learning: Jiayi-Pan/TinyZero: verl/utils/reward_score/countdown.py,
    which gives 0.1 to a valid equation where valid_credit gives 0 unless set.
    """

    use_all: bool = True
    valid_credit: float = 0.0
    extract: str | None = None
    name: str = "countdown"

    def __post_init__(self) -> None:
        if not 0 <= self.valid_credit < 1:
            raise ConfigError(f"valid_credit must lie in [0, 1), got {self.valid_credit}")
        if self.extract is not None:
            compiled(self.extract)

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        found = [extract_answer(s.text, self.extract) for s in samples]
        judged = [self.judge(a, *_puzzle(s)) for a, s in zip(found, samples, strict=True)]
        correct: list[float | None] = [float(c) for c, _ in judged]
        valid: list[float | None] = [float(v) for _, v in judged]
        total: list[float | None] = [1.0 if c else self.valid_credit * v for c, v in judged]
        return Scores(total=total, score=correct, parts={"correct": list(correct), "valid": valid}, extracted=found)

    def judge(self, answer: str | None, numbers: Sequence[int], target: int) -> tuple[bool, bool]:
        """(correct, valid) of one expression."""
        if answer is None:
            return False, False
        ending = _EQUALS.search(answer[-40:])
        if ending and int(ending.group(1)) == target:
            answer = answer[: answer.rfind("=")]
        try:
            value, used = evaluate(answer)
        except BadExpression:
            return False, False
        have, took = Counter(numbers), Counter(used)
        valid = took == have if self.use_all else took <= have
        return valid and value == target, valid


def _puzzle(sample: Sample) -> tuple[list[int], int]:
    try:
        return [int(n) for n in sample.row["numbers"]], int(sample.row["target"])
    except (KeyError, TypeError, ValueError) as error:
        raise RewardError(
            f"countdown needs row['numbers'] and row['target'], the row has {', '.join(sample.row) or 'nothing'}"
        ) from error


def countdown_task(
    *,
    size: int = 1000,
    heldout: int = 200,
    numbers: int = 4,
    min_numbers: int | None = None,
    largest: int = 25,
    min_target: int = 1,
    max_target: int = 100,
    operators: str = "+-*/",
    use_all: bool = True,
    valid_credit: float = 0.0,
    prompt: str = PROMPT,
    extract: str | None = None,
    seed: int = 0,
) -> DatasetTask:
    """Distinct puzzles, each made from its own solution, so each can be solved by the rules it states.

    numbers: how many are given, or between min_numbers and that.  largest: each is in [1, largest].
    operators: those a solution needs (a response may use all four).  prompt: text with {numbers}, {target}
    and, if wanted, {rule}.  Two puzzles differ in their numbers (in any order) or their target, and none
    stands on both sides; the held-out ones come first from the seed's stream and do not change with `size`.
    `Example.answer` is one solution; there may be others.
    Raises ConfigError: settings out of range, or so tight that enough puzzles are not found.
    """
    fewest = numbers if min_numbers is None else min_numbers
    if not 2 <= fewest <= numbers or largest < 1 or not 1 <= min_target <= max_target or size < 1 or heldout < 0:
        raise ConfigError(
            "countdown needs 2 <= min_numbers <= numbers, largest >= 1, 1 <= min_target <= max_target, size >= 1, "
            f"heldout >= 0; got min_numbers={fewest}, numbers={numbers}, largest={largest}, min_target={min_target}, "
            f"max_target={max_target}, size={size}, heldout={heldout}"
        )
    if not operators or set(operators) - set(_OPERATORS):
        raise ConfigError(f"operators must be signs out of {_OPERATORS!r}, got {operators!r}")
    if "{numbers}" not in prompt or "{target}" not in prompt:
        raise ConfigError(f"prompt must contain {{numbers}} and {{target}}, got {prompt!r}")
    rng, puzzles = Random(seed), dict[tuple[int, ...], tuple[list[int], int, str]]()
    misses = 0
    while len(puzzles) < size + heldout:
        drawn = _draw(rng, rng.randint(fewest, numbers), largest, operators)
        key = (*sorted(drawn[0]), drawn[1])
        if not min_target <= drawn[1] <= max_target or drawn[1] in drawn[0] or key in puzzles:
            misses += 1
            if misses > _TRIES:
                raise ConfigError(f"only {len(puzzles)} of {size + heldout} distinct puzzles found: widen the settings")
            continue
        puzzles[key], misses = drawn, 0
    examples = [_example(place, *puzzle, prompt, use_all) for place, puzzle in enumerate(puzzles.values())]
    reward = CountdownReward(use_all, valid_credit, extract)
    return DatasetTask("countdown", tuple(examples[heldout:]), tuple(examples[:heldout]), reward)


def _draw(rng: Random, count: int, largest: int, operators: str) -> tuple[list[int], int, str]:
    """(numbers in random order, target, solution): numbers joined two by two until one is left.

    Every step gives a whole number of at least 0, as on paper; a division that would not is replaced by a
    multiplication or, if the game has none, redrawn as a target of 0, which no setting accepts.
    """
    given = [rng.randint(1, largest) for _ in range(count)]
    rest = [(n, str(n)) for n in given]
    while len(rest) > 1:
        (a, left), (b, right) = (rest.pop(rng.randrange(len(rest))) for _ in range(2))
        sign = rng.choice(operators)
        if sign in "-/" and a < b:
            a, b, left, right = b, a, right, left
        if sign == "/" and (b == 0 or a % b):
            if "*" not in operators:
                return given, 0, ""
            sign = "*"
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[sign]
        rest.append((value, f"({left} {sign} {right})"))
    value, solution = rest[0]
    return given, value, solution[1:-1]


def _example(place: int, numbers: list[int], target: int, solution: str, prompt: str, use_all: bool) -> Example:
    text = prompt.replace("{numbers}", ", ".join(map(str, numbers)))
    text = text.replace("{target}", str(target)).replace("{rule}", _RULES[use_all])
    row = {"numbers": numbers, "target": target, "solution": solution, "answer": solution}
    return Example(text, solution, row=row, id=place)
