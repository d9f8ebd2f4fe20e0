"""Drawn shapes: what is asked is in the picture, and the answer is right."""

from __future__ import annotations

import json
from random import Random

import pytest

pytest.importorskip("PIL")

from unipo.errors import ConfigError
from unipo.tasks.check import check_task
from unipo.tasks.shapes import COLOURS, SHAPES, Thing, ask, draw, shapes_task


@pytest.mark.parametrize("kind", ["words", "count", "choices", "left"])
def test_the_task_keeps_its_promises(kind: str) -> None:
    report = check_task(
        shapes_task(size=40, heldout=12, kind=kind), lambda: shapes_task(size=40, heldout=12, kind=kind)
    )
    assert (report.train, report.heldout) == (40, 12)


def test_pointing_is_paid_by_the_box_of_the_row() -> None:
    task = shapes_task(size=20, heldout=4, kind="point")
    report = check_task(task, respond=lambda e: f"<think>there</think>{e.answer}")
    assert any("the right answer scores 1" in claim for claim in report.claims)
    box = task.train[0].row["bbox"]
    (point,) = json.loads(task.train[0].answer or "")
    assert box[0] <= point["point_2d"][0] <= box[2]


def test_every_shape_is_drawn_where_it_says_in_its_colour() -> None:
    for colour, value in COLOURS.items():
        for shape in SHAPES:
            thing = Thing(colour, shape, (8, 16, 14, 22))
            image = draw([thing], 32)
            seen = [(x, y) for x in range(32) for y in range(32) if image.getpixel((x, y)) == value]
            assert seen
            assert all(8 <= x <= 14 and 16 <= y <= 22 for x, y in seen)
            assert len(seen) == 49 if shape == "square" else len(seen) < 49


def test_answers_follow_from_the_things() -> None:
    rng = Random(0)
    for kind in ("count", "colour", "shape", "left", "choices"):
        for _ in range(50):
            q = ask(rng, kind, 32)
            words = q.text.rstrip("?").split()
            if kind == "count":
                asked = words[-1].removesuffix("s") if words[-1] not in COLOURS else words[-1]
                assert int(q.answer) == sum(asked in (t.colour, t.shape) for t in q.things)
            if kind == "colour":
                assert [t.colour for t in q.things if t.shape == words[-1]] == [q.answer]
            if kind == "shape":
                assert [t.shape for t in q.things if t.colour == words[-1]] == [q.answer]
            if kind == "left":
                assert min(q.things, key=lambda t: t.box[0]).shape == q.answer
            if kind == "choices":
                named = dict(zip(words[3::2], words[4::2], strict=True))
                assert {named[x] for x in q.answer.split(",")} == {t.colour for t in q.things}


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown kind of shapes 'cuont'; did you mean 'count'"):
        shapes_task(kind="cuont")
    with pytest.raises(ConfigError, match="a reward of its own"):
        shapes_task(kind="point,count")
    with pytest.raises(ConfigError, match="24 to 1024 pixels"):
        shapes_task(pixels=8)
