"""Tokens weighed by their place in the response."""

from unipo.method import Paper
from unipo.methods.grpo import grpo_token
from unipo.parts.objective import Clipped
from unipo.parts.position import PositionWeight
from unipo.registry import register

tw_grpo = register(
    grpo_token.but(
        name="tw-grpo",
        paper=Paper("Reinforcing Video Reasoning with Focused Thinking", "2505.24718", "longmalongma/TW-GRPO"),
        summary="Weigh each place of the response by how much the group's next-token distributions differ there.",
        credit=(PositionWeight(alpha=1.7),),
        objective=Clipped(low=0.2, high=0.28),
        regularisers=(),
        defaults={"learning_rate": 1e-6, "max_grad_norm": 20.0},
        notes=(
            "One extra pass without gradient per batch, over whole distributions; the authors keep all the logits of "
            "their training pass instead.",
            "Responses are aligned by index: place 7 of one is compared with place 7 of the others.",
            "Places after the end of a response count as uniform distributions.",
            "Its graded reward is --data.reward choices (several right letters, none wrong); the authors add a format reward: --data.reward 'choices + format:answer'.",
            "Question-answer inversion is unipo.tasks.inversion.invert, applied to the data beforehand.",
            "The distributions are at the sampling temperature; the authors sample and score at 1.",
        ),
        doubts=(
            "The paper's formula of the weight was not seen; the code's is used, but detached: there gradient also "
            "flows through the weights. That form is not offered: it needs gradient through every whole distribution of the group.",
            "Whether the published numbers used alpha 1.7 (the script) or 1.4 (the code's default).",
        ),
        limits=(
            "Responses are aligned by index: the same words at different places look like disagreement.",
            "One extra pass over whole distributions; tokens at places where others have ended weigh more, whatever they say.",
        ),
    )
)
