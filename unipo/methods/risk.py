"""Objectives that look at a part of the reward's distribution instead of its mean."""

from unipo.method import Paper
from unipo.methods.grpo import grpo_token
from unipo.methods.sequence import gspo
from unipo.parts.quantile import BundleRisk, ReleasedBundleRisk
from unipo.parts.source import OnPolicy
from unipo.registry import register

PAPER = Paper(
    "RiskPO: Risk-based Policy Optimization via Verifiable Reward for LLM Post-Training",
    "2510.00911",
    "RTkenny/RiskPO",
)

riskpo = register(
    gspo.but(
        name="riskpo",
        paper=PAPER,
        summary="Bundle the prompts, and penalise bundles below the upper quantile of all bundle scores.",
        source=OnPolicy(group_size=5),
        advantage=BundleRisk(),
        defaults={"learning_rate": 1e-6},
        notes=(
            "Five prompts form a block; its j-th responses form bundle j. Take a multiple of five prompts per update.",
            "Advantages are never positive: solved bundles stop pushing, the worst push hardest.",
            "Two tracked quantiles are remembered from batch to batch and saved in checkpoints.",
            "This is the paper's form; riskpo-released is what the authors' code computes. They differ.",
            "Other group sizes: 10 for DAPO-Math.",
        ),
        doubts=(
            "The paper's clip range for its sequence ratio; GSPO's is used.",
            "How the paper treats a last, incomplete bundle: here blocks are made nearly equal and scores rescaled.",
            "Whether the published numbers are of the paper's form or of the released code.",
        ),
        limits=(
            "All responses of a bundle share one advantage: right ones in a bad bundle are pushed down, which is noise.",
            "Needs several prompts per bundle; with one, rewards of 0 and 1 have no quantiles, and the paper's results fall.",
        ),
    )
)

riskpo_released = register(
    grpo_token.but(
        name="riskpo-released",
        paper=PAPER,
        summary="RiskPO as its released code computes it: each block's own quantiles, token clip, token mean.",
        source=OnPolicy(group_size=5, minibatches=2),
        advantage=ReleasedBundleRisk(),
        regularisers=(),
        defaults={"learning_rate": 1e-6},
        notes=(
            "Settings of the MATH/GSM8K script. DAPO-Math: source.group_size=10, source.minibatches=4, "
            "advantage.high=0.8, advantage.shift=false, advantage.credit=sum-mean.",
            "The code's tracked quantiles only feed its logs, so nothing is remembered here.",
            "A block whose bundles all score the same gives no signal; with tracked quantiles it would.",
        ),
        doubts=("Whether the published runs had the bug that keeps the tracked quantiles from the advantages.",),
        limits=(
            "A block whose bundles all score the same gives no signal; its quantiles are of as few scores as a group has.",
        ),
    )
)
