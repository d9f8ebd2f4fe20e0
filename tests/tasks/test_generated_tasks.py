"""Countdown and arithmetic: solvable, exact, distinct, and the same for the same seed."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unipo.errors import ConfigError, RewardError
from unipo.tasks.arithmetic import ArithmeticReward, arithmetic_task
from unipo.tasks.check import check_task
from unipo.tasks.countdown import CountdownReward, countdown_task
from unipo.tasks.exact import exact_number
from unipo.tasks.expression import BadExpression, evaluate
from unipo.tasks.extract import extract_answer
from unipo.tasks.task import Sample


# -- expressions ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "value", "used"),
    [
        ("1 + 2 * 3", Fraction(7), [1, 2, 3]),
        ("(1 + 2) * 3", Fraction(9), [1, 2, 3]),
        ("8 / 3 / 4", Fraction(2, 3), [8, 3, 4]),
        ("8 / (3 - 8 / 3)", Fraction(24), [8, 3, 8, 3]),
        ("-3 + 5", Fraction(2), [3, 5]),
        ("3 × 4 ÷ 2 − 1", Fraction(5), [3, 4, 2, 1]),
    ],
)
def test_expressions_have_their_exact_value_and_numbers(text: str, value: Fraction, used: list[int]) -> None:
    assert evaluate(text) == (value, used)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "1 +", "2 ** 3", "2 ** 9 ** 9", "7 // 2", "1 / 0", "1 / (2 - 2)", "1.5 + 2", "1e3", "(1, 2)"),
        *("1 2", "5 = 5", "(" * 150 + "1", "1+" * 150 + "1", "007 + 1", "٣ + 1", "1 if 1 else 2", "1\n+ 2"),
        "__import__('os')",
    ],
)
def test_what_is_no_expression_of_whole_numbers_is_refused(text: str) -> None:
    with pytest.raises(BadExpression):
        evaluate(text)


_TREES = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
    max_leaves=6,
)


@given(_TREES)
def test_values_agree_with_python_on_generated_expressions(text: str) -> None:
    assert evaluate(text)[0] == eval(text)  # the text was made above from digits, + - * and parentheses


@pytest.mark.parametrize(
    ("text", "value"),
    [("46", 46), (" -1,250 ", -1250), ("12.50", Fraction(25, 2)), ("+3", 3), ("−7", -7), (".5", Fraction(1, 2))],
)
def test_numbers_are_read_exactly(text: str, value: Fraction) -> None:
    assert exact_number(text) == value


@pytest.mark.parametrize("text", [None, "", "4 6", "46.", "1,25", "1e3", "46 apples", "٤", "1/2", "9" * 300, "--1"])
def test_what_is_no_plain_number_is_none(text: str | None) -> None:
    assert exact_number(text) is None


# -- extraction ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so <answer> 5 </answer> done", "5"),
        ("<answer>4</answer> no, <answer>5</answer>", "5"),
        ("<answer>4</answer> and <answer>5", "4"),
        ("<answer><answer>5</answer>", "5"),
        ("  5\n", "5"),
        ("it is 5", "it is 5"),
        ("<answer>a\nb</answer>", "a\nb"),
        ("<answer> </answer>", None),
        ("", None),
        ("5</answer>", "5</answer>"),
    ],
)
def test_the_last_tag_holds_the_answer_and_without_tags_the_whole_text_does(text: str, found: str | None) -> None:
    assert extract_answer(text) == found


def test_a_pattern_takes_its_last_match_and_finds_nothing_elsewhere() -> None:
    assert extract_answer("a #### 1\n#### 22 ", r"#### (\S+)") == "22"
    assert extract_answer("12 and 13", r"\d+") == "13"
    assert extract_answer("none", r"#### (\S+)") is None
    with pytest.raises(ConfigError, match="no regular expression"):
        CountdownReward(extract="(")


# -- countdown -----------------------------------------------------------------------------------
@given(
    seed=st.integers(0, 10**6),
    numbers=st.integers(2, 6),
    operators=st.sampled_from(["+-*/", "+-", "+*", "*/", "+-/"]),
    use_all=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_every_puzzle_is_solved_by_its_own_solution(seed: int, numbers: int, operators: str, use_all: bool) -> None:
    task = countdown_task(
        size=15, heldout=5, numbers=numbers, operators=operators, max_target=500, use_all=use_all, seed=seed
    )
    report = check_task(task)
    assert report.spelling == "{answer}"
    puzzles = [(*sorted(e.row["numbers"]), e.row["target"]) for e in [*task.train, *task.heldout]]
    assert len(set(puzzles)) == 20
    for example in task.train:
        value, used = evaluate(example.row["solution"])
        assert value == example.row["target"]
        assert sorted(used) == sorted(example.row["numbers"])
        assert str(example.row["target"]) in example.prompt


def _judge(text: str, use_all: bool = True, credit: float = 0.1) -> tuple[float | None, float | None]:
    row = {"numbers": [2, 3, 4], "target": 10}
    scores = CountdownReward(use_all, credit)([Sample("", text, row=row)])
    return scores.score[0], scores.total[0]


@pytest.mark.parametrize(
    ("text", "score", "total"),
    [
        ("<answer>2 * 3 + 4</answer>", 1.0, 1.0),
        ("3 * 2 + 4", 1.0, 1.0),
        ("<answer>2 * 3 + 4 = 10</answer>", 1.0, 1.0),
        ("<answer>2 * 3 + 4 = 11</answer>", 0.0, 0.0),
        ("<answer>2 + 3 + 4</answer>", 0.0, 0.1),
        ("<answer>10</answer>", 0.0, 0.0),
        ("<answer>4 + 4 + 2</answer>", 0.0, 0.0),
        ("<answer>2 * 3 + 4 + 4 - 4</answer>", 0.0, 0.0),
        ("<answer>2 ** 3 + 4</answer>", 0.0, 0.0),
        ("the answer is 2 * 3 + 4", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_countdown_scores_by_value_and_numbers(text: str, score: float, total: float) -> None:
    assert _judge(text) == (score, total)


def test_at_most_once_allows_leaving_a_number_out_but_not_using_one_twice() -> None:
    row = {"numbers": [5, 5, 2, 9], "target": 10}
    reward = CountdownReward(use_all=False)
    texts = ["5 + 5", "5 * 2", "5 + 5 + 2 - 2", "2 * 5"]
    assert reward([Sample("", t, row=row) for t in texts]).score == [1.0, 1.0, 0.0, 1.0]
    assert CountdownReward(use_all=True)([Sample("", "5 + 5", row=row)]).score == [0.0]


def test_countdown_held_out_puzzles_do_not_change_with_size() -> None:
    small, large = countdown_task(size=5, heldout=7), countdown_task(size=50, heldout=7)
    assert small.heldout == large.heldout
    assert large.train[:5] == small.train
    assert countdown_task(size=5, heldout=7, seed=1).heldout != small.heldout


def test_countdown_difficulty_is_kept() -> None:
    task = countdown_task(size=60, heldout=0, numbers=5, min_numbers=3, largest=9, min_target=20, max_target=30)
    assert {len(e.row["numbers"]) for e in task.train} == {3, 4, 5}
    assert all(20 <= e.row["target"] <= 30 and max(e.row["numbers"]) <= 9 for e in task.train)


def test_countdown_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"only \d+ of 1200 distinct puzzles found"):
        countdown_task(numbers=2, largest=3)
    wrong = ({"numbers": 1}, {"min_numbers": 5}, {"size": 0}, {"min_target": 9, "max_target": 3}, {"operators": "+^"})
    for settings_ in wrong:
        with pytest.raises(ConfigError):
            countdown_task(**settings_)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="valid_credit"):
        countdown_task(valid_credit=1.0)


def test_a_sample_of_another_task_is_an_error_and_not_a_zero() -> None:
    with pytest.raises(RewardError, match=r"needs row\['numbers'\].*the row has question"):
        CountdownReward()([Sample("", "1", row={"question": "q"})])
    with pytest.raises(RewardError, match="needs a number as the answer"):
        ArithmeticReward()([Sample("", "1", answer="one")])


# -- arithmetic ----------------------------------------------------------------------------------
@given(
    seed=st.integers(0, 10**6),
    operators=st.sampled_from(["+", "-", "*", "+-", "+-*"]),
    terms=st.integers(2, 5),
    digits=st.integers(1, 6),
)
@settings(max_examples=30, deadline=None)
def test_every_sum_has_its_exact_value(seed: int, operators: str, terms: int, digits: int) -> None:
    task = arithmetic_task(size=20, heldout=5, operators=operators, terms=terms, max_digits=digits, seed=seed)
    assert check_task(task).spelling == "{answer}"
    for example in task.train:
        assert evaluate(example.row["expression"])[0] == int(example.answer or "")
        assert len(example.row["expression"].split()) == 2 * terms - 1


def test_all_one_digit_sums_can_be_asked_for_and_no_more() -> None:
    task = arithmetic_task(size=90, heldout=10, operators="+", max_digits=1)
    both = {e.row["expression"] for e in [*task.train, *task.heldout]}
    assert both == {f"{a} + {b}" for a in range(10) for b in range(10)}
    with pytest.raises(ConfigError, match="only 100 exist"):
        arithmetic_task(size=91, heldout=10, operators="+", max_digits=1)


def test_arithmetic_held_out_sums_do_not_change_with_size() -> None:
    for digits in (2, 5):
        small = arithmetic_task(size=5, heldout=7, max_digits=digits)
        large = arithmetic_task(size=50, heldout=7, max_digits=digits)
        assert small.heldout == large.heldout
        assert large.train[:5] == small.train


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("46", 1.0),
        ("<answer>46.0</answer>", 1.0),
        ("+46", 1.0),
        ("45 no <answer>46</answer>", 1.0),
        ("46.0001", 0.0),
        ("it is 46", 0.0),
        ("", 0.0),
        ("4 6", 0.0),
    ],
)
def test_arithmetic_compares_numbers_and_not_texts(text: str, score: float) -> None:
    assert ArithmeticReward()([Sample("", text, answer="46")]).score == [score]


def test_digits_bound_operands_on_both_sides_and_prompts_follow_their_template() -> None:
    task = arithmetic_task(size=50, heldout=0, min_digits=3, max_digits=3, prompt="{expression}=")
    for example in task.train:
        assert example.prompt == example.row["expression"] + "="
        assert all(100 <= int(n) <= 999 for n in example.row["expression"].split()[::2])


def test_arithmetic_settings_that_cannot_work_are_refused() -> None:
    wrong = (
        {"operators": "/"},
        {"operators": ""},
        {"operators": "++"},
        {"terms": 1},
        {"min_digits": 3},
        {"prompt": "x"},
    )
    for settings_ in wrong:
        with pytest.raises(ConfigError):
            arithmetic_task(**settings_)  # type: ignore[arg-type]
