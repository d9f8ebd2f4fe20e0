"""Learning off-policy without a trust region: nothing is clipped, only what is bad is tapered off."""

from unipo.method import Paper
from unipo.methods.reinforce import reinforce
from unipo.parts.average import SequenceMean
from unipo.parts.source import OnPolicy
from unipo.parts.tapered import SignedReward, Tapered
from unipo.registry import register

topr = register(
    reinforce.but(
        name="topr",
        paper=Paper("Tapered Off-Policy REINFORCE: Stable and efficient reinforcement learning for LLMs", "2503.14286"),
        summary="Off-policy REINFORCE: full weight on good responses, the truncated sequence ratio on bad ones.",
        source=OnPolicy(group_size=16, minibatches=4),
        advantage=SignedReward(baseline=0.0),
        objective=Tapered(),
        average=SequenceMean(),
        defaults={"learning_rate": 5e-7, "weight_decay": 0.0, "max_grad_norm": 1.0},
        notes=(
            "The ratio is of the whole response to the policy that sampled it, in log space, and carries no gradient.",
            "Rewards become +1 above advantage.above and -1 elsewhere; advantage.baseline sets the share of good ones.",
            "The paper samples 16 (GSM8K) or 32 (MATH) answers to every question, trains one epoch, and repeats: a "
            "batch here is that data set, source.minibatches its optimiser steps.",
            "The paper uses Adafactor with a constant rate; AdamW here.  It samples with top-k 500; here from the whole "
            "distribution.",
        ),
        doubts=(
            "Steps per data set: the paper has a whole epoch, 4 minibatches here.",
            "Third-party versions use token ratios and other signs for a reward of 0; the paper is followed.",
        ),
        limits=(
            "Good responses keep their full weight however far the policy has moved, so off-policy the gradient is biased.",
            "In the paper it was best with 10 to 20 % good responses, and lost accuracy with more than half.",
        ),
    )
)
