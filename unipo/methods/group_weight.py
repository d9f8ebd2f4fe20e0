"""Prompts weighed by what their group of rollouts shows: how long right answers are, how much answers differ."""

from unipo.method import Paper
from unipo.methods.grpo import grpo_token
from unipo.parts.advantage import GroupNormalised
from unipo.parts.group_weight import LengthAdvantage
from unipo.parts.regulariser import ReferenceKL
from unipo.parts.source import OnPolicy
from unipo.registry import register

adora = register(
    grpo_token.but(
        name="adora",
        paper=Paper(
            "ADORA: Training Reasoning Models with Dynamic Advantage Estimation on Reinforcement Learning",
            "2602.10019",
            "ShadeCloak/ADORA",
        ),
        summary="Shrink the advantages of groups whose longest right response is not longer than its wrong ones.",
        source=OnPolicy(group_size=16),
        advantage=GroupNormalised(eps=1e-6),
        credit=(LengthAdvantage(),),
        regularisers=(ReferenceKL(beta=0.001, estimator="k3"),),
        defaults={"learning_rate": 3e-7},
        notes=(
            "The default is the released rule for language models: weight 1 with length advantage, else 0.1.",
            "The paper's rule for language models: credit.0.strong=2, credit.0.weak=1, credit.0.difficulty=0.5.",
            "The release for vision models: credit.0.edges=vlm, advantage.eps=1e-9, source.group_size=8, learning rate 1e-6.",
            "The two releases treat groups without right, or without usable wrong, responses in opposite ways.",
            "The weight is recomputed at every step from that step's group; nothing is remembered.",
            "With Adam a common factor washes out: only the weights of prompts relative to each other matter.",
        ),
        doubts=(
            "Whether the paper combines its two criteria (length, difficulty) with AND, as here, or with OR.",
            "The group size of the language-model runs: 16 in the script, 5 according to reviews of the paper.",
            "Truncated right responses count for the longest one, as in the code; the text does not say.",
        ),
        limits=(
            "Takes length for depth: where right answers are padded it favours padding. Reviewers of the paper said so.",
            "In the authors' own logs accuracy on the training domain ends below GRPO's (0.61 against 0.64 to 0.66).",
        ),
    )
)
