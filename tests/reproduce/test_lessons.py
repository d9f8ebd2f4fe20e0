"""What a record says of the model that its runs started from."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from unipo.reproduce.filling import writes
from unipo.reproduce.lesson import Lesson


def spell(rng: Random) -> tuple[str, str]:
    """A letter, said once."""
    return "say", rng.choice("ab")


def spell_wrongly(rng: Random) -> tuple[str, str]:
    """A letter, said once."""
    return "say", rng.choice("ac")


def test_whatever_decides_the_taught_model_is_in_its_words() -> None:
    lesson = Lesson(spell)
    others = (
        replace(lesson, write=spell_wrongly),
        *(replace(lesson, **{k: 3}) for k in ("steps", "rows", "learning_rate")),
    )
    assert len({str(x) for x in (lesson, *others)}) == 5
    assert str(lesson) == str(Lesson(spell))
    assert "learning rate 0.001" in str(lesson)
    assert str(lesson).endswith(": A letter, said once.")


def test_lessons_that_slip_more_or_less_often_are_told_apart() -> None:
    half, tenth = str(Lesson(writes(0.5), steps=300)), str(Lesson(writes(0.1), steps=300))
    assert "a letter drawn anew in 50% of them" in half
    assert "a letter drawn anew in 10% of them" in tenth
    assert Lesson(writes(0.5)).digest() != Lesson(writes(0.1)).digest()


def test_a_lesson_of_nameless_demonstrations_has_words_all_the_same() -> None:
    assert str(Lesson(lambda rng: ("a", "b"))).endswith(Lesson(lambda rng: ("a", "b")).digest())
