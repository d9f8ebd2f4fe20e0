"""Drawn shapes and questions about them: a task in pictures for image-and-text models of any size.

One to four shapes, each of a colour, lie on a white ground in the cells of a four by four grid, a little out of
place.  Every question has one checkable answer that the words alone do not give.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from unipo.errors import ConfigError, MissingExtra, unknown
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.task import Example, Reward

COLOURS = {"red": (214, 40, 40), "green": (40, 160, 60), "blue": (40, 70, 200), "yellow": (240, 200, 40)}
SHAPES = ("circle", "square", "triangle")
LETTERS = "ABCD"
WORDS = ("count", "colour", "shape", "left")
_GRID = 4
_HELD = 8  # one question in so many is never trained on

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Thing:
    """One shape. box: x1, y1, x2, y2 in pixels, borders inclusive."""

    colour: str
    shape: str
    box: Box


@dataclass(frozen=True)
class Question:
    """A question about some things. thought: what a demonstration may think before the answer; box: of what is to be
    pointed at."""

    kind: str
    text: str
    answer: str
    things: tuple[Thing, ...]
    thought: str = ""
    box: Box | None = None


def draw(things: Sequence[Thing], pixels: int) -> Any:
    """The things as a PIL image of `pixels` by `pixels`."""
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise MissingExtra("pillow", "vision", "drawing shapes") from error
    image = Image.new("RGB", (pixels, pixels), (255, 255, 255))
    pen = ImageDraw.Draw(image)
    for thing in things:
        x1, y1, x2, y2 = thing.box
        fill = COLOURS[thing.colour]
        if thing.shape == "circle":
            pen.ellipse(thing.box, fill=fill)
        elif thing.shape == "square":
            pen.rectangle(thing.box, fill=fill)
        else:
            pen.polygon([(x1, y2), ((x1 + x2) // 2, y1), (x2, y2)], fill=fill)
    return image


def scatter(rng: Random, count: int, pixels: int) -> list[Thing]:
    """`count` things in cells of their own."""
    cell = pixels // _GRID
    slack = max(1, cell // 8)
    size = cell - slack
    things = []
    for place in rng.sample(range(_GRID * _GRID), count):
        x = place % _GRID * cell + rng.randint(0, slack)
        y = place // _GRID * cell + rng.randint(0, slack)
        box = (x, y, x + size - 1, y + size - 1)
        things.append(Thing(rng.choice(list(COLOURS)), rng.choice(SHAPES), box))
    return things


# -- kinds of questions: each tries to ask about some things, and gives up where they do not allow it -----------------
def _count(rng: Random, things: Sequence[Thing]) -> Question | None:
    by_colour = rng.random() < 0.5
    asked = rng.choice(list(COLOURS)) if by_colour else rng.choice(SHAPES)
    found = [t for t in things if asked in (t.colour, t.shape)]
    others = " ".join(t.shape if by_colour else t.colour for t in found)
    text = f"how many {asked}?" if by_colour else f"how many {asked}s?"
    return Question("count", text, str(len(found)), tuple(things), f"<aux>{others}</aux>" if found else "none")


def _colour(rng: Random, things: Sequence[Thing]) -> Question | None:
    thing = rng.choice(things)
    if sum(t.shape == thing.shape for t in things) > 1:
        return None
    return Question("colour", f"what colour is the {thing.shape}?", thing.colour, tuple(things))


def _shape(rng: Random, things: Sequence[Thing]) -> Question | None:
    thing = rng.choice(things)
    if sum(t.colour == thing.colour for t in things) > 1:
        return None
    return Question("shape", f"what shape is {thing.colour}?", thing.shape, tuple(things))


def _left(rng: Random, things: Sequence[Thing]) -> Question | None:
    first, second = sorted(things[:2], key=lambda t: t.box[0]) if len(things) > 1 else (things[0], things[0])
    if first.shape == second.shape or second.box[0] - first.box[0] < (first.box[2] - first.box[0]) // 2:
        return None
    return Question("left", "what is left?", first.shape, (first, second))


def _point(rng: Random, things: Sequence[Thing]) -> Question | None:
    thing = rng.choice(things)
    if sum((t.colour, t.shape) == (thing.colour, thing.shape) for t in things) > 1:
        return None
    x, y = (thing.box[0] + thing.box[2]) // 2, (thing.box[1] + thing.box[3]) // 2
    found = f'[{{"point_2d": [{x}, {y}]}}]'
    text = f"point at the {thing.colour} {thing.shape}"
    return Question("point", text, found, tuple(things), "there", thing.box)


def _choices(rng: Random, things: Sequence[Thing]) -> Question | None:
    options = rng.sample(list(COLOURS), len(LETTERS))
    right = [letter for letter, colour in zip(LETTERS, options, strict=True) if colour in {t.colour for t in things}]
    listed = " ".join(f"{letter} {colour}" for letter, colour in zip(LETTERS, options, strict=True))
    return Question("choices", f"which are there? {listed}", ",".join(right), tuple(things))


_KINDS: dict[str, Callable[[Random, Sequence[Thing]], Question | None]] = {
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "left": _left,
    "point": _point,
    "choices": _choices,
}


def ask(rng: Random, kind: str, pixels: int, most: int = 4) -> Question:
    """A question of this kind about a fresh scene of at most `most` things."""
    while True:
        question = _KINDS[kind](rng, scatter(rng, rng.randint(1, most), pixels))
        if question is not None:
            return question


def is_held_out(question: Question) -> bool:
    """Which side a question is on, by what it says and shows."""
    said = repr((question.text, question.things)).encode()
    return int(hashlib.sha256(said).hexdigest(), 16) % _HELD == 0


def questions(kinds: Sequence[str], pixels: int, heldout: bool, seed: int | str) -> Iterator[Question]:
    """Endless distinct questions of one side, the kinds in turn."""
    rng, seen = Random(f"shapes {seed} {heldout}"), set[str]()
    while True:
        for kind in kinds:
            question = ask(rng, kind, pixels)
            key = repr((question.text, question.things))
            if is_held_out(question) == heldout and key not in seen:
                seen.add(key)
                yield question


def shapes_task(
    *, size: int = 600, heldout: int = 200, kind: str = "words", pixels: int = 32, seed: int = 0
) -> DatasetTask:
    """Questions about drawn shapes, with the image in the prompt.

    kind: "words" (count, colour, shape and left in turn; the answer is one word), one of these four, "choices" (the
    letters of all colours there are; part of them earns part), "point" (the place of a shape as
    [{"point_2d": [x, y]}] after <think>...</think>; the right box stands in the row as `bbox`), or several of them
    separated by commas if they share a reward.
    pixels: width and height.  Held-out questions are told by a hash, and no model of unipo was trained on them.
    """
    kinds = WORDS if kind == "words" else tuple(kind.split(","))
    for name in kinds:
        if name not in _KINDS:
            raise unknown("kind of shapes", name, (*_KINDS, "words"))
    if size < 0 or heldout < 0 or size + heldout == 0 or not 24 <= pixels <= 1024:
        raise ConfigError(
            f"shapes needs size and heldout of 0 or more, not both 0, and 24 to 1024 pixels; got {size}, {heldout}, {pixels}"
        )
    sides = []
    for held, count in ((False, size), (True, heldout)):
        stream = questions(kinds, pixels, held, seed)
        sides.append(tuple(_example(next(stream), pixels, i) for i in range(count)))
    return DatasetTask("shapes", sides[0], sides[1], _reward(kinds))


def _reward(kinds: Sequence[str]) -> Reward:
    from unipo.rewards.choices import Choices
    from unipo.rewards.exact import ExactMatch
    from unipo.rewards.exploration import AdaptiveExploration

    special = [k for k in kinds if k not in WORDS]
    if special and len(set(kinds)) > 1:
        raise ConfigError(f"shapes: {special[0]!r} has a reward of its own and cannot be mixed with {', '.join(kinds)}")
    if special:
        return AdaptiveExploration() if special[0] == "point" else Choices()
    return ExactMatch()


def _example(question: Question, pixels: int, place: int) -> Example:
    things = [{"colour": t.colour, "shape": t.shape, "box": list(t.box)} for t in question.things]
    row: dict[str, Any] = {"kind": question.kind, "question": question.text, "things": things}
    if question.box is not None:
        row["bbox"] = list(question.box)
    prompt = [{"role": "user", "content": f"<image>{question.text}"}]
    return Example(prompt, question.answer, row=row, id=place, images=(draw(question.things, pixels),))
