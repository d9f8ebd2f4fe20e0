"""Small sums and word games worked step by step: verifiable tasks that a model of a million weights can learn.

A question is a line such as `347+586=`; a response is `<think>7+6=13,4+8+1=13,3+5+1=9</think>933`: the
steps, then the answer.  Questions are generated, so there is nothing to download, and every kind comes with
its own demonstrations, right ones and ones with a slip: one step goes wrong, and what follows builds on it.

Whether a question is for training or held out is decided by a hash of its text, not by the seed: no
held-out question of one seed is a training question of another, and the starter model (`unipo.starter`)
was never shown one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal, TypeVar

from unipo.errors import ConfigError, RewardError, unknown
from unipo.tasks.task import Example, Response, Sample, Scores

THINK, END_THINK = "<think>", "</think>"
HELDOUT_ONE_IN = 8
LETTERS = "abcdefghijklmnopqrstuvwxyz"
T = TypeVar("T")


class Hand:
    """Writes the result of each step, and gets exactly one of them wrong if told which.

    slip_at: 0-based number of the step to get wrong among the steps that can go wrong; None for no slip.
    `steps` counts those seen so far.
    """

    def __init__(self, rng: Random | None = None, slip_at: int | None = None) -> None:
        self.rng, self.slip_at, self.steps = rng or Random(0), slip_at, 0

    def write(self, right: T, wrong: Sequence[T]) -> T:
        """The right result, or at the step that slips one of the wrong ones. No wrong ones: cannot slip here."""
        if not wrong:
            return right
        self.steps += 1
        return self.rng.choice(wrong) if self.steps - 1 == self.slip_at else right

    def number(self, right: int, low: int = 0, high: int | None = None) -> int:
        """A number that slips by one, staying within [low, high]."""
        near = [n for n in (right - 1, right + 1) if n >= low and (high is None or n <= high)]
        return self.write(right, near)


Work = Callable[[str, Hand], tuple[list[str], str]]


@dataclass(frozen=True)
class Kind:
    """One kind of problem. `ask` draws a question; `work` solves it by hand: (what is written, final answer)."""

    name: str
    ask: Callable[[Random], str]
    work: Work

    def problem(self, rng: Random) -> tuple[str, str]:
        """A question and its right answer."""
        question = self.ask(rng)
        return question, self.work(question, Hand())[1]

    def demonstration(self, rng: Random, question: str, slip_rate: float = 0.0) -> str:
        """A worked response. With probability `slip_rate` one step, any with equal chance, is wrong.

        A slip need not spoil the answer (a running maximum may recover), but nearly always does.
        """
        if not 0.0 <= slip_rate <= 1.0:
            raise ConfigError(f"slip_rate is a probability, got {slip_rate}")
        slip_at = None
        if rng.random() < slip_rate:
            count = Hand()
            self.work(question, count)
            slip_at = rng.randrange(count.steps) if count.steps else None
        steps, answer = self.work(question, Hand(rng, slip_at))
        return f"{THINK}{','.join(steps)}{END_THINK}{answer}"


# -- the kinds --------------------------------------------------------------------------------
def _numbers(question: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", question)]


def _digits_up(n: int, width: int) -> list[int]:
    """The decimal digits from the units upwards, filled with zeros to `width`."""
    return [int(d) for d in reversed(str(n).zfill(width))]


def _plain(digits: str) -> str:
    """A number without leading zeros."""
    return digits.lstrip("0") or "0"


def _ask_add(rng: Random) -> str:
    return f"{rng.randint(100, 999)}+{rng.randint(100, 999)}="


def _work_add(question: str, hand: Hand) -> tuple[list[str], str]:
    a, b = _numbers(question)
    width = max(len(str(a)), len(str(b)))
    steps, answer, carry = [], "", 0
    for x, y in zip(_digits_up(a, width), _digits_up(b, width), strict=True):
        total = hand.number(x + y + carry, 0, 19)
        steps.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        carry, answer = total // 10, str(total % 10) + answer
    return steps, _plain(("1" if carry else "") + answer)


def _ask_sub(rng: Random) -> str:
    a, b = sorted((rng.randint(100, 999), rng.randint(100, 999)), reverse=True)
    return f"{a}-{b}="


def _work_sub(question: str, hand: Hand) -> tuple[list[str], str]:
    a, b = _numbers(question)
    width = len(str(a))
    steps, answer, borrowed = [], "", 0
    for x, y in zip(_digits_up(a, width), _digits_up(b, width), strict=True):
        top = x - borrowed
        borrowed = 1 if top < y else 0
        top += 10 * borrowed
        digit = hand.number(top - y, 0, 9)
        steps.append(f"{top}-{y}={digit}")
        answer = str(digit) + answer
    return steps, _plain(answer)


def _ask_mul(rng: Random) -> str:
    return f"{rng.randint(12, 999)}*{rng.randint(2, 9)}="


def _work_mul(question: str, hand: Hand) -> tuple[list[str], str]:
    a, m = _numbers(question)
    steps, answer, carry = [], "", 0
    for x in _digits_up(a, 1):
        right = x * m + carry
        product = hand.write(right, [p for p in (right - m, right - 1, right + 1, right + m) if 0 <= p <= 99])
        steps.append(f"{x}*{m}{f'+{carry}' if carry else ''}={product}")
        carry, answer = product // 10, str(product % 10) + answer
    return steps, _plain((str(carry) if carry else "") + answer)


def _ask_mod(rng: Random) -> str:
    return f"{rng.randint(100, 9999)}%{rng.randint(3, 9)}="


def _work_mod(question: str, hand: Hand) -> tuple[list[str], str]:
    n, m = _numbers(question)
    steps, rest = [], 0
    for x in str(n):
        value = 10 * rest + int(x)
        rest = hand.number(value % m, 0, m - 1)
        steps.append(f"{value}%{m}={rest}")
    return steps, str(rest)


def _ask_chain(rng: Random) -> str:
    terms = "".join(f"{rng.choice('+-')}{rng.randint(1, 9)}" for _ in range(rng.randint(3, 4)))
    return f"{rng.randint(1, 9)}{terms} mod 10="


def _work_chain(question: str, hand: Hand) -> tuple[list[str], str]:
    first, *terms = re.findall(r"[+-]?\d", question.split(" ")[0])
    steps, value = [], int(first)
    for term in terms:
        right = (value + int(term)) % 10
        result = hand.write(right, [(right - 1) % 10, (right + 1) % 10])
        steps.append(f"{value}{term}={result}")
        value = result
    return steps, str(value)


def _placed(line: str, item: str, place: int) -> str:
    return line[:place] + item + line[place:]


def _ask_sort(rng: Random) -> str:
    return f"sort {''.join(rng.choices('0123456789', k=rng.randint(4, 5)))}"


def _work_sort(question: str, hand: Hand) -> tuple[list[str], str]:
    steps, line = [], ""
    for item in question.split(" ")[1]:
        place = sum(other <= item for other in line)
        right = _placed(line, item, place)
        near = (_placed(line, item, p) for p in (place - 1, place + 1) if 0 <= p <= len(line))
        line = hand.write(right, [wrong for wrong in near if wrong != right])
        steps.append(line)
    return steps, line


def _ask_max(rng: Random) -> str:
    return f"max {' '.join(str(rng.randint(10, 99)) for _ in range(rng.randint(4, 5)))}"


def _work_max(question: str, hand: Hand) -> tuple[list[str], str]:
    best, *others = _numbers(question)
    steps = [str(best)]
    for n in others:
        best = hand.write(max(best, n), [min(best, n)] if best != n else [])
        steps.append(str(best))
    return steps, str(best)


def _ask_reverse(rng: Random) -> str:
    return f"reverse {''.join(rng.choices(LETTERS, k=rng.randint(4, 5)))}"


def _work_reverse(question: str, hand: Hand) -> tuple[list[str], str]:
    steps, line = [], ""
    for item in question.split(" ")[1]:
        line = hand.write(item + line, [line + item] if line + item != item + line else [])
        steps.append(line)
    return steps, line


def _kinds(*kinds: Kind) -> dict[str, Kind]:
    return {kind.name: kind for kind in kinds}


KINDS: Mapping[str, Kind] = _kinds(
    Kind("add", _ask_add, _work_add),
    Kind("sub", _ask_sub, _work_sub),
    Kind("mul", _ask_mul, _work_mul),
    Kind("mod", _ask_mod, _work_mod),
    Kind("chain", _ask_chain, _work_chain),
    Kind("sort", _ask_sort, _work_sort),
    Kind("max", _ask_max, _work_max),
    Kind("reverse", _ask_reverse, _work_reverse),
)


# -- the reward -------------------------------------------------------------------------------
def final_answer(text: str) -> str | None:
    """What stands after the last `</think>`, stripped; None without a `</think>` or with nothing after it."""
    _, closed, rest = text.rpartition(END_THINK)
    return (rest.strip() or None) if closed else None


def well_formed(text: str) -> bool:
    """One `<think>` at the very start, one `</think>` after it, and an answer behind."""
    starts = text.startswith(THINK) and text.count(THINK) == 1
    return starts and text.count(END_THINK) == 1 and final_answer(text) is not None


@dataclass(frozen=True)
class ScratchpadReward:
    """Score 1 where the text after the last `</think>` is the answer, else 0.

    total = score + format_weight * format, with format = 1 for `<think>...</think>answer` and nothing else;
    the format is reported as a part whatever its weight.  Texts are decoded without the end-of-turn token.
    Raises RewardError for a sample without an answer: there would be nothing to compare with.
    """

    format_weight: float = 0.0
    name: str = "scratchpad"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        score: list[float | None] = []
        form: list[float | None] = []
        total: list[float | None] = []
        extracted: list[str | None] = []
        for place, sample in enumerate(samples):
            if sample.answer is None:
                raise RewardError(f"scratchpad reward: sample {place} (prompt {sample.prompt!r}) has no answer")
            found = final_answer(sample.text)
            right, shape = float(found == sample.answer.strip()), float(well_formed(sample.text))
            extracted.append(found)
            score.append(right)
            form.append(shape)
            total.append(right + self.format_weight * shape)
        return Scores(total, score, {"answer": list(score), "format": form}, extracted)


# -- the task ---------------------------------------------------------------------------------
Split = Literal["train", "heldout"]
Responses = Literal["none", "demonstration", "pair"]


@dataclass(frozen=True)
class ScratchpadTask:
    """Train and held-out problems of some kinds, with their reward (see `unipo.tasks.task.Task`)."""

    name: str
    train: Sequence[Example]
    heldout: Sequence[Example]
    reward: ScratchpadReward = field(default_factory=ScratchpadReward)


def split_of(question: str) -> Split:
    """The side a question belongs to, for every seed: one question in eight, by hash, is held out."""
    held = hashlib.sha256(question.encode()).digest()[0] % HELDOUT_ONE_IN == 0
    return "heldout" if held else "train"


def problems(kind: Kind, split: Split, seed: int) -> Iterator[tuple[str, str]]:
    """Endless distinct (question, answer) pairs of one side; the same for the same seed.

    Raises ConfigError once 1,000 draws in a row bring nothing new: the kind has no more.
    """
    rng, seen, stale = Random(f"scratchpad {kind.name} {split} {seed}"), set[str](), 0
    while stale < 1000:
        question, answer = kind.problem(rng)
        stale += 1
        if split_of(question) == split and question not in seen:
            seen.add(question)
            stale = 0
            yield question, answer
    raise ConfigError(f"kind {kind.name!r} has only about {len(seen)} distinct {split} problems: ask for fewer")


def _responses(kind: Kind, question: str, answer: str, give: Responses, rng: Random) -> tuple[Response, ...]:
    if give == "none":
        return ()
    right = Response(kind.demonstration(rng, question, 0.0), 1.0)
    if give == "demonstration":
        return (right,)
    for _ in range(1000):
        slipped = kind.demonstration(rng, question, 1.0)
        if final_answer(slipped) != answer:
            return right, Response(slipped, 0.0)
    raise ConfigError(f"no slip spoils the answer of {question!r}, so it cannot make a pair")


def _examples(kinds: Sequence[Kind], split: Split, size: int, seed: int, give: Responses) -> tuple[Example, ...]:
    sources = [problems(kind, split, seed) for kind in kinds]
    rng = Random(f"scratchpad responses {split} {seed}")
    examples = []
    for place in range(size):
        kind = kinds[place % len(kinds)]
        question, answer = next(sources[place % len(kinds)])
        row = {"kind": kind.name, "question": question, "answer": answer}
        responses = _responses(kind, question, answer, give, rng)
        examples.append(Example([{"role": "user", "content": question}], answer, responses, row, place))
    return tuple(examples)


DEFAULT_KINDS = ("add", "sub", "mul", "mod", "chain", "sort")


def scratchpad_task(
    kinds: Sequence[str] = DEFAULT_KINDS,
    size: int = 4096,
    heldout: int = 512,
    seed: int = 0,
    responses: Responses = "none",
    format_weight: float = 0.0,
) -> ScratchpadTask:
    """A task of `size` training and `heldout` held-out problems; the kinds take turns, so a prefix is balanced.

    kinds: names from `KINDS`.  responses: "none" for sampling methods, "demonstration" for a right worked
    response to each problem, "pair" for a right one (preference 1) and one whose slip spoils the answer (0).
    Raises ConfigError for an unknown or repeated kind, a negative size, or more problems than a kind has.
    """
    if not kinds or len(set(kinds)) != len(kinds):
        raise ConfigError(f"scratchpad_task needs one or more different kinds, got {list(kinds)}")
    if responses not in ("none", "demonstration", "pair"):
        raise unknown("kind of responses", responses, ("none", "demonstration", "pair"))
    if size < 0 or heldout < 0:
        raise ConfigError(f"sizes cannot be negative: size={size}, heldout={heldout}")
    for name in kinds:
        if name not in KINDS:
            raise unknown("scratchpad kind", name, KINDS)
    chosen = [KINDS[name] for name in kinds]
    train = _examples(chosen, "train", size, seed, responses)
    held = _examples(chosen, "heldout", heldout, seed, responses)
    return ScratchpadTask(f"scratchpad({'+'.join(kinds)})", train, held, ScratchpadReward(format_weight))
