"""Supervised data, learnt as if the policy had written each next token."""

from unipo.method import Paper
from unipo.methods.supervised import sft
from unipo.parts.average import SequenceMean
from unipo.parts.one_token import OneTokenRollout
from unipo.registry import register

otr = register(
    sft.but(
        name="otr",
        paper=Paper(
            "One-Token Rollout: Guiding Supervised Fine-Tuning of LLMs with Policy Gradient",
            "2509.26313",
        ),
        summary="At every position of a demonstration, draw next tokens and reinforce those that match it.",
        objective=OneTokenRollout(count=256, temperature=1.3, beta=-0.1),
        average=SequenceMean(),
        notes=(
            "The draws come from the logits of the training pass: no generation and no second pass of the model, but the "
            "output layer is worked off twice more, and K ids are kept per position.",
            "With objective.temperature=1 the expected gradient is DFT's times 1 - beta.",
        ),
        doubts=(
            "K = 256 is confirmed by a review; temperature 1.3 and beta -0.1 are recalled.",
            "Division by the response's length is the paper's, the mean over the batch is assumed.",
        ),
        limits=(
            "Tokens that the model finds improbable are hardly ever drawn, so what it does not know is learned slowly.",
            "With a temperature of 1 its mean gradient is DFT's, so the draws add noise and cost alone.",
        ),
    )
)
