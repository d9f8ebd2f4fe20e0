r"""Maths verification against a table of golds and texts.

Written for math-verify 0.9.0.  Two rows differ from what reading 0.8.0 suggests: "28" and "28\%" match, and an
inline formula broken over lines is still read, as the plain number in it.
"""

from __future__ import annotations

import random
import sys
import threading

import pytest

pytest.importorskip("math_verify")

from unipo.errors import ConfigError, MissingExtra
from unipo.rewards import Maths, Sample

MATHS = Maths(workers=1, seconds=30.0)

TRUE = [
    ("7425000", "7,425,000"),
    ("1000", "1 000"),
    ("2.74", "2,74"),
    ("$1/3$", r"\frac13"),
    (r"$28\%$", "28 percent"),
    ("$x=11$", "x=5+5+1=7=11"),
    ("$11$", "x=11"),
    (r"$x\leq5$", r"5\geq x"),
    (r"$\{1,3\}\cup\{2,4\}$", r"$\{1,2,3,4\}$"),
    ("15 cm^2", "15"),
    ("$10/9$", r"\frac{10}{9}"),
    ("1/3", "0.333333"),
    ("5", r"\boxed{10/2}"),
    ("0.0", r"\boxed{1e-7}"),
    (r"\text{A}", r"\boxed{A}"),
    ("A", r"the answer is \boxed{\text{A}}."),
    ("28", r"$28\%$"),
    ("$9$", "$ \n 9 \n $"),
    (r"3\sqrt{2}", r"\boxed{3\sqrt2}"),
    ("2x+3", r"\boxed{3+2x}"),
    ("1,2", r"\boxed{2,1}"),
    ("1,2", "1,2"),
    ("She sold 72.\n#### 72", r"\boxed{72}"),
    (r"so we get $\boxed{\frac{1}{2}}$.", "The final answer is $0.5$"),
    ("72", r"\boxed{\$72}"),
    ("72", r"\boxed{72 \text{ apples}}"),
    ("3", r"first \boxed{4}, no: \boxed{3}"),
    ("3", r"\boxed 3"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}"),
    (r"90^\circ", r"\boxed{90}"),
    ("1<x<2", r"\boxed{(1,2)}"),
    ("3", r"<think>\boxed{4}</think> \boxed{3}"),
    (r"4 \text{ or } 5", r"\boxed{4, 5}"),
]

FALSE = [
    ("2", "AZYUK2A"),
    ("$(0,9)$", "[0,9)"),
    ("$7=11a+c$", "11a+c"),
    ("1/3", "0.33"),
    ("3", r"\boxed{3} and \boxed{4}"),
    ("3", r"\boxed{3}\boxed{4}"),
    ("3", r"\boxed{3 or 4}"),
    ("4", r"\boxed{3 or 4}"),
    ("3", r"\boxed{3 \text{ or } 4}"),
    ("3", r"\boxed{3, 4}"),
    ("3", "3 or 4"),
    ("4", "3 or 4"),
    (r"$\{4, 35\}$", r"$\boxed{35}, \boxed{4}$"),
    ("1,2", r"\boxed{1.2}"),
    ("(1,2)", r"\boxed{1<x<2}"),
    (r"3\sqrt{2}", r"\boxed{3}"),
    ("3", ""),
    ("3", "   "),
    ("3", r"\boxed{}"),
    ("3", r"\boxed{3"),
    ("3", r"3 is \boxed{\frac{3}{1}"),
    ("3", r"\boxed{3} no, \boxed{4"),
    ("3", "<think>so it is 3"),
    ("3", r"<think>\boxed{3}</think> I do not know"),
    ("B", r"\boxed{A}"),
]

REFLEXIVE = [gold for gold, _ in TRUE + FALSE]


def grade(pairs, reward=MATHS):
    return reward([Sample("p", text, gold) for gold, text in pairs])


def test_equal_answers_score_one():
    values = grade(TRUE).total
    assert [pair for pair, value in zip(TRUE, values, strict=True) if value != 1.0] == []


def test_unequal_and_unreadable_answers_score_zero():
    values = grade(FALSE).total
    assert [(pair, v) for pair, v in zip(FALSE, values, strict=True) if v != 0.0] == []


def test_every_gold_equals_itself_in_a_box():
    plain = [gold for gold in REFLEXIVE if "boxed" not in gold and "####" not in gold]
    values = grade([(gold, rf"\boxed{{{gold}}}") for gold in plain]).total
    assert [gold for gold, value in zip(plain, values, strict=True) if value != 1.0] == []


def test_a_gold_that_does_not_parse_is_unscorable_not_wrong():
    scores = MATHS([Sample("p", "3", r"\boxed{"), Sample("p", "3", None), Sample("p", "3", ""), Sample("p", "3", "3")])
    assert scores.total == [None, None, None, 1.0]
    assert scores.events == {"no_answer": 1, "unparsed_gold": 2}


def test_the_extracted_answer_is_reported():
    extracted = grade([("3", r"so \boxed{\frac{6}{2}}"), ("3", "The answer is 4."), ("3", "no idea")]).extracted
    assert extracted == [r"\frac{6}{2}", "4", None]


def test_a_box_can_be_demanded():
    strict = Maths(workers=1, require_box=True)
    assert grade([("3", "The answer is 3"), ("3", r"\boxed{3}")], strict).total == [0.0, 1.0]
    assert grade([("3", "The answer is 3")]).total == [1.0]


def test_reasoning_opened_by_the_prompt_must_end():
    texts = (r"\boxed{3}", r"</think> \boxed{3}")
    assert MATHS([Sample("solve <think>\n", text, "3") for text in texts]).total == [0.0, 1.0]


def test_towers_and_factorials_run_out_of_time_score_zero_and_leave_the_worker_alive():
    quick = Maths(workers=1, seconds=4.0)
    pairs = [("72", r"\boxed{10^{10^{10}}}"), ("72", r"\boxed{(10^{9})!}"), ("72", r"\boxed{72}")]
    scores = grade(pairs, quick)
    assert scores.total == [0.0, 0.0, 1.0]
    assert scores.events == {"timeout": 2}
    assert grade([("72", "72")], quick).total == [1.0]


def test_100_kilobytes_of_anything_are_graded():
    texts = ["a " * 50_000, "$" * 100_000, "{" * 100_000, r"\boxed{" * 14_000, "1 " * 50_000, "= " * 50_000]
    assert grade([("3", text) for text in texts]).total == [0.0] * len(texts)
    assert grade([("3", "word " * 20_000 + r"\boxed{3}"), ("3", r"\boxed{3}" + " word" * 20_000)]).total == [1.0, 1.0]


def test_order_and_repetition_do_not_change_a_grade():
    pairs = TRUE + FALSE
    expected = dict(zip(pairs, grade(pairs).total, strict=True))
    many = pairs * 10
    random.Random(7).shuffle(many)
    two_workers = Maths(workers=2, seconds=30.0)
    assert grade(many, two_workers).total == [expected[pair] for pair in many]


def test_perturbed_numbers_never_score():
    """Numbers written five ways, against themselves and against themselves plus one."""
    rng = random.Random(3)
    same, other = [], []
    for _ in range(40):
        a, b = rng.randint(2, 9999), rng.randint(2, 97)
        for write in (rf"\boxed{{\frac{{{a}}}{{{b}}}}}", f"The answer is ${a}/{b}$.", f"{a}/{b}"):
            same.append((rf"\frac{{{a}}}{{{b}}}", write))
            other.append((rf"\frac{{{a + 1}}}{{{b}}}", write))
        for write in (rf"\boxed{{{a:,}}}", f"so it is {a}."):
            same.append((str(a), write))
            other.append((str(a + 1), write))
    assert set(grade(same).total) == {1.0}
    assert set(grade(other).total) == {0.0}


def test_maths_works_off_the_main_thread():
    results: list[float | None] = []
    thread = threading.Thread(target=lambda: results.extend(grade([("1/2", r"\boxed{0.5}")]).total))
    thread.start()
    thread.join(timeout=60)
    assert results == [1.0]


def test_without_math_verify_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)  # as if it were not installed
    with pytest.raises(MissingExtra, match=r"unipo\[maths\]"):
        Maths()


def test_maths_settings_are_checked_when_made():
    with pytest.raises(ConfigError, match="workers must be a number above 0"):
        Maths(workers=0)
    with pytest.raises(ConfigError, match="seconds must be a number above 0"):
        Maths(seconds=-1.0)
