"""Partial credit for several right options, and questions turned round."""

from __future__ import annotations

import pytest

from unipo.errors import DataError
from unipo.rewards import Choices, Sample, check_reward
from unipo.tasks.inversion import invert


@pytest.mark.parametrize(
    ("found", "value"),
    [("A", 0.5), ("A, C", 1.0), ("c,a", 1.0), ("A,B", 0.0), ("A,C,D", 0.0), ("", 0.0), ("A,A", 0.5), (",", 0.0)],
)
def test_shares_of_a_and_c(found, value):
    scores = Choices()([Sample("", f"<think>B</think><answer>{found}</answer>", "A, C")])
    assert scores.total == [value]


def test_without_an_answer_it_cannot_be_scored():
    scores = Choices()([Sample("", "A", None), Sample("", "A", " "), Sample("", "A", "A")])
    assert scores.total == [None, None, 1.0]
    assert scores.events == {"no_answer": 2}


def test_it_passes_the_check_of_rewards():
    check_reward("choices")


OPTIONS = ("the cube", "the ball", "the cone", "the ring")


def test_an_inverted_question_has_one_wrong_option_the_once_right_one():
    seen = set()
    for seed in range(60):
        made = invert("What did the cylinder hit?", OPTIONS, 1, seed)
        assert made.question == "What didn't the cylinder hit?"
        right = {made.options["ABCD".index(letter)] for letter in made.answer.split(",")}
        assert set(made.options) - right == {"the ball"}
        assert right <= set(OPTIONS)
        assert made.answer.split(",") == sorted(made.answer.split(","))
        assert invert("What did the cylinder hit?", OPTIONS, 1, seed) == made
        seen.add((len(right), made.options.index("the ball")))
    assert {n for n, _ in seen} == {1, 2, 3}
    assert {place for _, place in seen} == {0, 1, 2, 3}


def test_what_cannot_be_negated_is_left_out():
    assert invert("Which object moved?", OPTIONS, 0, 0) is None
    assert invert("Why?", OPTIONS, 0, 0) is None
    with pytest.raises(DataError, match="2 to 26 options"):
        invert("What did it hit?", OPTIONS[:1], 0, 0)
