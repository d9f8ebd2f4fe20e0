"""Discriminative objectives: right above wrong, with the same weight for every question."""

import math

from unipo.method import Method, Paper
from unipo.parts.average import GroupMean
from unipo.parts.discriminative import Discriminative, HingeKL
from unipo.parts.source import OnPolicy
from unipo.registry import register

disco = register(
    Method(
        name="disco",
        paper=Paper(
            "DisCO: Reinforcing Large Reasoning Models with Discriminative Constrained Optimization",
            "2505.12366",
            "Optimization-AI/DisCO",
        ),
        summary="Raise right responses above the hardest wrong ones, equally for every question, in a KL region.",
        source=OnPolicy(group_size=8, minibatches=4),
        objective=Discriminative(score="log", tau=10.0),
        average=GroupMean(count="all"),
        regularisers=(HingeKL(beta=1e3, delta=1e-4),),
        defaults={"learning_rate": 2e-6},
        notes=(
            "Questions without a right or without a wrong response give 0 and stay in the denominator.",
            "The region's KL is over the whole minibatch; from the second update of a batch on it takes one pass "
            "without gradient (the official code estimates it in each micro-batch).",
            "No advantage, clip, reference or entropy term.  Token means inside responses, as score and as KL.",
            "The other score: objective.score=ratio, objective.tau=1.",
            "2e-6 is the paper's rate for 1.5B, 1e-6 for 7B; its temperature is 0.6 (sampling.temperature).",
        ),
        doubts=(
            "The release's scripts and loss names do not match, so its tables cannot be tied to them.",
            "Rewards other than 0 and 1 are undefined in the paper: what lies between takes no part here.",
        ),
        limits=(
            "Needs rewards of 0 and 1, and teaches nothing from questions with only right or only wrong responses.",
            "One more pass without gradient for every update after the first of a batch.",
        ),
    )
)

disco_b = register(
    disco.but(
        name="disco-b",
        summary="DisCO with the plain mean over wrong responses in place of the hardest.",
        **{"objective.tau": math.inf},
        notes=("On-policy the two scores have the same gradient.",),
        doubts=("The release's scripts and loss names do not match, so its tables cannot be tied to them.",),
        limits=(
            "All wrong responses weigh the same, so the likeliest is not pushed harder than those the policy hardly writes.",
        ),
    )
)
