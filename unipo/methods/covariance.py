"""Entropy kept by holding back the few tokens whose log-probability and advantage move together."""

from unipo.method import Paper
from unipo.methods.grpo import grpo
from unipo.parts.advantage import GroupNormalised
from unipo.parts.average import TokenMean
from unipo.parts.covariance import ClipCov, CovarianceKL, ImportanceWeighted
from unipo.parts.selection import DynamicSampling
from unipo.parts.source import OnPolicy
from unipo.registry import register

_PAPER = Paper(
    "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
    "2505.22617",
    "PRIME-RL/Entropy-Mechanism-of-RL",
)
_SCOPE = "Covariances are over the whole minibatch, as in the paper; the official code takes each micro-batch."
_COST = "From the second update of a batch on, one pass without gradient gives the minibatch's current log-probs."

clip_cov = register(
    grpo.but(
        name="clip-cov",
        paper=_PAPER,
        summary="GRPO with a practically open clip, without the gradient of a few random tokens of high covariance.",
        source=OnPolicy(group_size=8, minibatches=8),
        selection=(DynamicSampling(rounds=10),),
        advantage=GroupNormalised(eps=1e-6),
        objective=ClipCov(),
        average=TokenMean(),
        regularisers=(),
        defaults={"learning_rate": 5e-7},
        aliases=("clip-cov-kl-cov",),
        notes=(
            _SCOPE,
            _COST,
            "Dropped tokens stay in the denominator.  At least one is dropped wherever there is a candidate.",
            "With short batches the published share of 2e-4 is that one token: raise objective.share.",
        ),
        doubts=("Whether the paper's numbers depend on the micro-batch scope of its code.",),
        limits=(
            "It acts only on tokens between its two covariance bounds: with none there it is GRPO with an open clip.",
            "One more pass without gradient for every update after the first of a batch.",
        ),
    )
)

kl_cov = register(
    clip_cov.but(
        name="kl-cov",
        summary="Unclipped GRPO with a penalty on leaving the old policy at the tokens of highest covariance.",
        objective=ImportanceWeighted(),
        regularisers=(CovarianceKL(beta=1.0, share=2e-3),),
        notes=(
            _SCOPE,
            _COST,
            "The penalty is |log pi - log pi_old|, with gradient 0 at the first update of a batch.",
            "share is 2e-3 for the 7B and 2e-4 for the 32B model; with short batches it is one token: raise it.",
        ),
        doubts=("Whether the paper's numbers depend on the micro-batch scope of its code.",),
        limits=(
            "With one update per batch it does nothing: its penalty has no gradient where the policy is still the old one.",
            "Nothing clips the ratio, so tokens outside the chosen share can move without limit.",
        ),
    )
)
