"""Rollout correction: the sampler and the trainer give the same weights different probabilities."""

import math

from unipo.method import Paper
from unipo.methods.grpo import grpo_token
from unipo.parts.mismatch import MismatchGate, MismatchWeight
from unipo.registry import register

_EXACT = (
    "With an engine whose log-probs are exact (the local one in float32) pi_old/mu is 1 and nothing changes: it is for "
    "bfloat16, other engines and older weights, where the trainer's log-probs are recomputed in one pass."
)
_KEEPS = "Dropped tokens stay in the denominator, and KL terms are not weighed."
_COMPOSE = "The parts go into the credit of any method: credit=(*method.credit, MismatchWeight(cap=2.0))."

tis = register(
    grpo_token.but(
        name="tis",
        paper=Paper(
            "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training (2025)", code="volcengine/verl"
        ),
        summary="GRPO with truncated importance weights for the mismatch between sampler and trainer.",
        credit=(MismatchWeight(level="token", cap=2.0),),
        aliases=("rollout-correction",),
        notes=(_EXACT, _KEEPS, _COMPOSE, "credit.0.level=sequence weighs by the product over the response."),
        doubts=("The best cap depends on the model: 1.5 to 5 for tokens, 2 to 10 for responses.",),
        limits=(
            "Token weights leave a bias that grows with the square of the length; truncation adds one of its own.",
            "The trainer's log-probs cost one more pass over every batch.",
        ),
    )
)

icepop = register(
    tis.but(
        name="icepop",
        paper=Paper("Small Leak Can Sink a Great Ship: Boost RL Training on MoE with IcePop (2025)"),
        summary="GRPO that drops tokens on which sampler and trainer disagree, and weighs the others.",
        credit=(MismatchGate(level="token", low=0.5, high=5.0), MismatchWeight(level="token", cap=math.inf)),
        notes=(_EXACT, _KEEPS, "Inside the bounds the weight is the ratio itself."),
        doubts=("The bounds of IcePop's own report; 0.5 and 5 are what libraries ship.",),
        limits=(
            "Dropped tokens teach nothing: a bias where sampler and trainer differ most. One more pass per batch.",
        ),
    )
)

mis = register(
    tis.but(
        name="mis",
        paper=Paper("When Speed Kills Stability: Demystifying RL Collapse from the Training-Inference Mismatch (2025)"),
        summary="GRPO with the whole response's importance weight, dropped where it is too large.",
        credit=(MismatchGate(level="sequence", low=0.0, high=3.0), MismatchWeight(level="sequence", cap=math.inf)),
        notes=(_EXACT, _KEEPS, "Bounds as TRL's default sequence mask: none below, 3 above."),
        doubts=("The best bound depends on the model.",),
        limits=("A product over tokens: with the length its variance grows, and more whole responses are dropped.",),
    )
)

seq_mask_tis = register(
    mis.but(
        name="seq-mask-tis",
        summary="GRPO that drops responses by the geometric mean of their ratios and weighs the tokens of the others.",
        credit=(MismatchGate(level="geometric", low=0.999, high=1.002), MismatchWeight(level="token", cap=math.inf)),
        notes=(_EXACT, _KEEPS, "Kept responses use the raw token ratio, without a cap."),
        doubts=("The bounds were set for large mixture-of-experts models.",),
        limits=(
            "A mean difference of 0.2 % per token drops a whole response: a coarse sampler leaves next to nothing.",
        ),
    )
)
