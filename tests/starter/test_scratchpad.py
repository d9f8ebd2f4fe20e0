"""The scratchpad task: worked problems whose answers arithmetic confirms, slips, splits and the reward."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from random import Random

import pytest

from unipo.errors import ConfigError, RewardError
from unipo.tasks.scratchpad import (
    DEFAULT_KINDS,
    KINDS,
    Hand,
    ScratchpadReward,
    final_answer,
    problems,
    scratchpad_task,
    split_of,
    well_formed,
)
from unipo.tasks.task import Reward, Sample, Task


def _arithmetic(question: str) -> str:
    """Python's own value of `347+586=`, `1234%7=` or `3+8-5 mod 10=`."""
    expression = question.rstrip("=").replace("mod 10", "").strip()
    value = eval(re.sub(r"\b0+(?=\d)", "", expression))
    return str(value % 10 if "mod 10" in question else value)


CHECKS: dict[str, Callable[[str], str]] = {
    "add": _arithmetic,
    "sub": _arithmetic,
    "mul": _arithmetic,
    "mod": _arithmetic,
    "chain": _arithmetic,
    "sort": lambda q: "".join(sorted(q.split()[1])),
    "max": lambda q: max(q.split()[1:], key=int),
    "reverse": lambda q: q.split()[1][::-1],
}


@pytest.mark.parametrize("kind", KINDS)
def test_answers_agree_with_an_independent_solution(kind: str) -> None:
    assert set(CHECKS) == set(KINDS)
    for question, answer in islice(problems(KINDS[kind], "train", 3), 200):
        assert answer == CHECKS[kind](question), question


@pytest.mark.parametrize(
    ("kind", "question", "text"),
    [
        ("add", "347+586=", "<think>7+6=13,4+8+1=13,3+5+1=9</think>933"),
        ("add", "950+50=", "<think>0+0=0,5+5=10,9+0+1=10</think>1000"),
        ("sub", "523-187=", "<think>13-7=6,11-8=3,4-1=3</think>336"),
        ("sub", "500-499=", "<think>10-9=1,9-9=0,4-4=0</think>1"),
        ("sub", "321-321=", "<think>1-1=0,2-2=0,3-3=0</think>0"),
        ("mul", "47*6=", "<think>7*6=42,4*6+4=28</think>282"),
        ("mod", "583%7=", "<think>5%7=5,58%7=2,23%7=2</think>2"),
        ("chain", "3+8-5 mod 10=", "<think>3+8=1,1-5=6</think>6"),
        ("sort", "sort 7303", "<think>7,37,037,0337</think>0337"),
        ("max", "max 38 71 45", "<think>38,71,71</think>71"),
        ("reverse", "reverse stop", "<think>s,ts,ots,pots</think>pots"),
    ],
)
def test_a_demonstration_without_slips_shows_every_step(kind: str, question: str, text: str) -> None:
    assert KINDS[kind].demonstration(Random(0), question, slip_rate=0.0) == text


def test_a_slip_is_carried_on_to_the_answer() -> None:
    # 4+8+1 is 13; written as 12 or 14 the tens become 2 or 4, the carry stays, and 933 becomes 923 or 943
    steps, answer = KINDS["add"].work("347+586=", Hand(Random(0), slip_at=1))
    tens = {"4+8+1=12": "923", "4+8+1=14": "943"}
    assert (steps[0], steps[2]) == ("7+6=13", "3+5+1=9")
    assert tens[steps[1]] == answer


def test_a_lost_carry_changes_the_steps_that_follow() -> None:
    # 5+5 is 10; of its neighbours 9 loses the carry, and 60 becomes 59
    wrong = {tuple(KINDS["add"].work("55+5=", Hand(Random(seed), slip_at=0))[0]) for seed in range(20)}
    assert wrong == {("5+5=9", "5+0=5"), ("5+5=11", "5+0+1=6")}


@pytest.mark.parametrize("kind", KINDS)
def test_slipped_demonstrations_are_usually_wrong_and_never_malformed(kind: str) -> None:
    rng = Random(1)
    wrong = 0
    for question, answer in islice(problems(KINDS[kind], "train", 0), 200):
        text = KINDS[kind].demonstration(rng, question, slip_rate=1.0)
        assert well_formed(text)
        wrong += final_answer(text) != answer
    assert wrong > 100


def test_the_share_of_slips_is_the_one_asked_for() -> None:
    rng, kind = Random(2), KINDS["chain"]  # a slip in a sum modulo 10 always spoils it
    made = [(answer, kind.demonstration(rng, q, 0.3)) for q, answer in islice(problems(kind, "train", 0), 2000)]
    assert sum(final_answer(text) != answer for answer, text in made) / 2000 == pytest.approx(0.3, abs=0.04)


def test_a_slip_rate_is_a_probability() -> None:
    with pytest.raises(ConfigError, match="probability"):
        KINDS["add"].demonstration(Random(0), "111+222=", 1.5)


def test_tasks_follow_the_protocols() -> None:
    task = scratchpad_task(size=12, heldout=6)
    assert isinstance(task, Task)
    assert isinstance(task.reward, Reward)


def test_train_and_heldout_share_no_question_whatever_the_seeds() -> None:
    one = scratchpad_task(tuple(KINDS), size=800, heldout=400, seed=0)
    two = scratchpad_task(tuple(KINDS), size=800, heldout=400, seed=1)
    train = {e.row["question"] for task in (one, two) for e in task.train}
    held = {e.row["question"] for task in (one, two) for e in task.heldout}
    assert not train & held
    assert {split_of(question) for question in train} == {"train"}
    assert {split_of(question) for question in held} == {"heldout"}


def test_a_task_has_no_question_twice_and_the_sizes_asked_for() -> None:
    task = scratchpad_task(tuple(KINDS), size=800, heldout=400)
    assert len({e.row["question"] for e in task.train}) == len(task.train) == 800
    assert len({e.row["question"] for e in task.heldout}) == len(task.heldout) == 400


def test_a_task_is_a_function_of_its_seed() -> None:
    assert scratchpad_task(size=60, heldout=30, seed=5) == scratchpad_task(size=60, heldout=30, seed=5)
    assert scratchpad_task(size=60, heldout=30, seed=5).train != scratchpad_task(size=60, heldout=30, seed=6).train


def test_a_larger_task_begins_with_the_smaller_one() -> None:
    assert scratchpad_task(size=120, heldout=8).train[:60] == scratchpad_task(size=60, heldout=8).train


def test_kinds_take_turns() -> None:
    task = scratchpad_task(("add", "sort"), size=4, heldout=2)
    assert [e.row["kind"] for e in task.train] == ["add", "sort", "add", "sort"]
    assert [e.id for e in task.train] == [0, 1, 2, 3]
    first = task.train[0]
    assert first.prompt == [{"role": "user", "content": first.row["question"]}]
    assert first.answer == first.row["answer"]


def test_pairs_prefer_the_right_answer() -> None:
    task = scratchpad_task(tuple(KINDS), size=45, heldout=9, responses="pair")
    for example in task.train:
        right, wrong = example.responses
        assert final_answer(right.text) == example.answer != final_answer(wrong.text)
        assert (right.preference, wrong.preference) == (1.0, 0.0)
    (only,) = scratchpad_task(size=1, heldout=0, responses="demonstration").train[0].responses
    assert well_formed(only.text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": ("ad",)}, "did you mean 'add'"),
        ({"kinds": ()}, "one or more"),
        ({"kinds": ("add", "add")}, "different"),
        ({"size": -1}, "negative"),
        ({"responses": "pairs"}, "did you mean 'pair'"),
        ({"kinds": ("mul",), "size": 9000}, "distinct train problems"),
    ],
)
def test_impossible_tasks_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scratchpad_task(**settings)  # type: ignore[arg-type]


def test_default_kinds_exist() -> None:
    assert set(DEFAULT_KINDS) <= set(KINDS)


@pytest.mark.parametrize(
    ("text", "score", "format_", "extracted"),
    [
        ("<think>7+6=13</think>13", 1.0, 1.0, "13"),
        ("<think>7+6=13</think> 13\n", 1.0, 1.0, "13"),
        ("<think>7+6=12</think>12", 0.0, 1.0, "12"),
        ("7+6</think>13", 1.0, 0.0, "13"),
        ("<think>a</think>12</think>13", 1.0, 0.0, "13"),
        ("<think>a</think>013", 0.0, 1.0, "013"),
        ("<think>7+6=13", 0.0, 0.0, None),
        ("<think>7+6=13</think>", 0.0, 0.0, None),
        ("13", 0.0, 0.0, None),
        ("", 0.0, 0.0, None),
    ],
)
def test_reward_reads_what_follows_the_last_end_of_thought(
    text: str, score: float, format_: float, extracted: str | None
) -> None:
    scores = ScratchpadReward()([Sample("6+7=", text, "13")])
    assert scores.score == scores.total == [score]
    assert scores.parts == {"answer": [score], "format": [format_]}
    assert scores.extracted == [extracted]


def test_format_counts_only_when_weighted() -> None:
    samples = [Sample("6+7=", "<think></think>13", "13"), Sample("6+7=", "<think></think>1", "13")]
    assert ScratchpadReward().__call__(samples).total == [1.0, 0.0]
    assert ScratchpadReward(format_weight=0.1)(samples).total == [1.1, 0.1]
    assert ScratchpadReward(format_weight=0.1)(samples).score == [1.0, 0.0]


def test_a_sample_without_answer_is_an_error() -> None:
    with pytest.raises(RewardError, match="no answer"):
        ScratchpadReward()([Sample("6+7=", "<think></think>13")])
