"""Format rewards: one table of texts and what each form says of them."""

from __future__ import annotations

import pytest

from unipo.errors import ConfigError
from unipo.rewards import Format, Sample, r1_format, tag_count, think_format

GOOD = "<think>\nwhy\n</think>\n<answer>\n4\n</answer>"

TABLE = [
    # text, r1, think, tags
    (GOOD, True, True, 1.0),
    (GOOD + "\n", False, True, 1.0),
    (GOOD + "\nand more", False, True, 1.0),
    ("\n" + GOOD, False, False, 1.0),
    ("Sure! " + GOOD, False, False, 1.0),
    ("<think>\nwhy\n</think>\n" + GOOD, False, False, 0.5),
    (GOOD + "\n" + GOOD, False, False, 0.0),
    ("<think>\n\n</think>\n<answer>\n4\n</answer>", False, True, 1.0),
    ("<think>\nwhy\n</think>\n<answer>\n \n</answer>", False, True, 1.0),
    (GOOD.replace("\n", "\r\n"), False, True, 0.25),
    ("<think>why</think><answer>4</answer>", False, True, 0.0),
    ("```\n" + GOOD + "\n```", False, False, 1.0),
    ("<think>\nuse `<think>` and `</think>`\n</think>\n<answer>\n4\n</answer>", False, False, 1.0),
    ("<think>\nmany\n\nlines\n</think>\n<answer>\n4\n5\n</answer>", True, True, 1.0),
    ("<think>\nwhy\n</think>\n\n<answer>\n4\n</answer>", False, True, 1.0),
    ("<think>\nwhy", False, False, 0.25),
    ("<answer>\n4\n</answer>\n<think>\nwhy\n</think>\n", False, False, 0.75),
    ("", False, False, 0.0),
]


@pytest.mark.parametrize(("text", "r1", "think", "tags"), TABLE)
def test_format_table(text, r1, think, tags):
    assert r1_format(text) is r1
    assert think_format(text) is think
    assert tag_count(text) == tags


def test_a_think_tag_that_the_prompt_opened_is_put_back():
    opened = Sample("solve <think>\n", GOOD.removeprefix("<think>\n"), length=9)
    assert Format("r1")([opened]).total == [1.0]
    assert Format("tags")([opened]).total == [1.0]
    assert Format("r1")([Sample("solve", opened.text, length=9)]).total == [0.0]
    assert Format("r1")([Sample("use the tags <think> and </think>", GOOD, length=9)]).total == [1.0]


def test_a_pattern_must_match_the_whole_response():
    made = Format(pattern=r"yes|no")
    assert made([Sample("p", text) for text in ("yes", "no", "yes\n", "yes or no", "")]).total == [1, 1, 0, 0, 0]
    assert Format(pattern="a.b").of("a\nb") == 1.0


def test_boxed_wants_exactly_one_box():
    texts = [r"so \boxed{4}", r"\boxed{4} or \boxed{5}", "4"]
    assert Format("boxed")([Sample("p", text) for text in texts]).total == [1.0, 0.0, 0.0]


def test_names_and_mistakes():
    assert Format("tags").name == "format:tags"
    with pytest.raises(ConfigError, match="did you mean 'think'"):
        Format("thinks")
    with pytest.raises(ConfigError, match="not a regular expression"):
        Format(pattern="(")


ANSWERS = [
    ("<think>a</think><answer>A</answer>", True),
    ("<think>a\nb</think>\n <answer>\nA\n</answer> !\n", True),
    ("so: <think>a</think><answer>A</answer>", True),  # the authors search, and look at the end alone
    ("<think>a</think>A", False),
    ("<think>a</think> then <answer>A</answer>", False),
    ("<think>a</think><answer>A</answer><answer>B</answer>", False),
    ("<think><think>a</think><answer>A</answer>", False),
    ("<think>a</think><answer>A</answer> and more", False),
]


@pytest.mark.parametrize(("text", "good"), ANSWERS)
def test_a_thought_and_an_answer_at_the_end(text, good):
    assert Format("answer")([Sample("p", text)]).total == [float(good)]
