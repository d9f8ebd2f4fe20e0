"""Exact match, number match, and where the answer begins."""

from __future__ import annotations

import pytest

from unipo.errors import ConfigError
from unipo.rewards import ExactMatch, NumberMatch, Sample, final_text, find_number


@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        ("plain", "", "plain"),
        ("<think>a</think>b", "", "b"),
        ("<think>a</think>b</think>c", "", "c"),
        ("<think>never ends", "", None),
        ("<think>a</think>b<think>again", "", None),
        ("still thinking", "solve <think>\n", None),
        ("done</think>b", "solve <think>\n", "b"),
        ("text", "write <think> first", "text"),
        ("", "", ""),
    ],
)
def test_final_text_is_what_follows_the_reasoning(text, prompt, expected):
    assert final_text(text, prompt) == expected


def test_exact_match():
    def score(text: str, answer: str | None, **settings) -> float | None:
        return ExactMatch(**settings)([Sample("p", text, answer)]).total[0]

    assert score(" Paris\n", "Paris") == 1.0
    assert score("paris", "Paris") == 0.0
    assert score("paris", "Paris", casefold=True) == 1.0
    assert score(" Paris", "Paris", strip=False) == 0.0
    assert score("Paris, France", "Paris") == 0.0
    assert score("<think>\nParis\n</think>\nParis", "Paris") == 1.0
    assert score("<think>\nParis", "Paris") == 0.0
    assert score("", "") == 1.0
    assert ExactMatch()([Sample("p", "x", None)]).events == {"no_answer": 1}
    assert score("x", None) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("first 3, then 72", "72"),
        ("#### 72", "72"),
        ("it was 5 #### 72 and 9", "72"),
        ("#### none, 5", "5"),
        ("5 #### nothing", None),
        ("Answer: 72 because 9 > 8", "72"),
        ("The answer is 72. I checked 3 times", "72"),
        ("answer: 3. No, answer: 4", "4"),
        ("1,234,567.5 apples", "1234567.5"),
        ("1,2", "2"),
        ("$1,234", "1234"),
        ("\\$18", "18"),
        ("-$5", "-5"),
        ("10-5", "5"),
        ("is -5", "-5"),
        ("is −5", "-5"),
        (".5", ".5"),
        ("72.", "72"),
        ("72kg", "72"),
        ("AZYUK2A", None),
        ("1e-7", "1e-7"),
        ("", None),
        ("no number", None),
    ],
)
def test_find_number(text, expected):
    assert find_number(text) == expected


def test_where_restricts_the_search():
    text = "3 #### 4 answer: 5 and 6"
    assert [find_number(text, where) for where in ("hash", "answer", "last", "auto")] == ["4", "5", "6", "4"]
    assert find_number("just 3", "hash") is None
    assert find_number("just 3", "answer") is None
    with pytest.raises(ConfigError, match="did you mean 'hash'"):
        NumberMatch(where="hashes")


def test_number_match_reads_gsm8k_golds_and_predictions():
    gold = "He sold 48/2 = <<48/2=24>>24 clips.\n#### 1,072"
    texts = ["So 24 and 1072.", "#### 1072.0", "$1,072", "1073", "nothing", "<think>1072"]
    scores = NumberMatch()([Sample("p", text, gold) for text in texts])
    assert scores.total == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert scores.extracted == ["1072", "1072.0", "1072", "1073", None, None]


def test_number_match_tolerance():
    near = [Sample("p", "3.14", "3.14159")]
    assert NumberMatch()(near).total == [0.0]
    assert NumberMatch(tolerance=0.01)(near).total == [1.0]
    with pytest.raises(ConfigError, match="tolerance"):
        NumberMatch(tolerance=-1.0)


def test_a_gold_without_a_number_cannot_be_scored():
    scores = NumberMatch()([Sample("p", "3", "three"), Sample("p", "3", None), Sample("p", "3", "3")])
    assert scores.total == [None, None, 1.0]
    assert scores.events == {"no_answer": 1, "unparsed_gold": 1}


def test_huge_numbers_are_compared_without_being_computed():
    digits = "9" * 50_000
    assert NumberMatch()([Sample("p", digits, digits), Sample("p", digits + "1", digits)]).total == [1.0, 0.0]
    assert NumberMatch(tolerance=0.5)([Sample("p", "1e9999", "1")]).total == [0.0]
