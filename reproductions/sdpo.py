"""SDPO against GRPO at equal sampled tokens."""

from random import Random

from unipo.reproduce import Reproduction
from unipo.reproduce.claim import ACCURACY, AREA
from unipo.reproduce.lesson import Lesson
from unipo.starter.data import draw_training_question
from unipo.tasks.scratchpad import DEFAULT_KINDS, KINDS, final_answer


def write(rng: Random) -> tuple[str, str]:
    """Half of the demonstrations are shown a right answer and work towards it; the others slip as the shipped model does."""
    kind = KINDS[rng.choice(DEFAULT_KINDS)]
    question = draw_training_question(kind, rng)
    if rng.random() < 0.5:
        return question, kind.demonstration(rng, question, 0.45)
    right = kind.demonstration(rng, question)
    return f"{question}; see {final_answer(right)}", right


REPRODUCTION = Reproduction(
    method="sdpo",
    claim="Following what the model itself says when it is shown a right response of the same group learns more from "
    "the same sampled tokens than GRPO.",
    arms={"sdpo": "sdpo[selection.0.template=; see {shown}]", "grpo": "grpo-token[objective.high=0.28]"},
    metrics=(ACCURACY, AREA),
    budget="60000 tokens",
    start=Lesson(write, rows=24),
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="What is shown of a right response is what follows its thinking, here the answer alone. The shipped model knows "
    "no words, so a lesson teaches it to use an answer in its prompt. Without feedback of an environment, as rewards here "
    "have no words. The teacher is an average of past weights (0.95). Its pass is not counted in sampled tokens.",
)
