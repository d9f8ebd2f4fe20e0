"""OPSD against GRPO at equal sampled tokens."""

from random import Random

from unipo.reproduce import Reproduction
from unipo.reproduce.claim import ACCURACY, AREA
from unipo.reproduce.lesson import Lesson
from unipo.starter.data import draw_training_question
from unipo.tasks.scratchpad import DEFAULT_KINDS, KINDS


def write(rng: Random) -> tuple[str, str]:
    """Half of the demonstrations are shown a right solution and repeat it; the others slip as in the shipped model."""
    kind = KINDS[rng.choice(DEFAULT_KINDS)]
    question = draw_training_question(kind, rng)
    if rng.random() < 0.5:
        return question, kind.demonstration(rng, question, 0.45)
    solution = kind.demonstration(rng, question)
    return f"{question}; see {solution}", solution


REPRODUCTION = Reproduction(
    method="opsd",
    claim="Following, on its own responses, what the initial model says when it is shown the solution learns more from "
    "the same sampled tokens than GRPO.",
    arms={"opsd": "opsd[selection.0.template=; see {shown}]", "grpo": "grpo-token"},
    metrics=(AREA, ACCURACY),
    budget="60000 tokens",
    start=Lesson(write, rows=24),
    search={"lr": (1e-4, 2e-4, 4e-4)},
    select="area",
    notes="The shipped model knows no words, so a lesson teaches it to use a solution in its prompt; a large model is "
    "taken to know. That teacher hardly slips. OPSD sees worked solutions, GRPO only whether an answer is right. All "
    "weights are trained, without adapters. The teacher's pass is not counted in sampled tokens.",
)
