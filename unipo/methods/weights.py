"""Methods that weigh the score function instead of clipping the surrogate."""

from unipo.method import Paper
from unipo.methods.grpo import grpo
from unipo.parts.average import TokenMean
from unipo.parts.objective import ClippedWeight
from unipo.registry import register

cispo = register(
    grpo.but(
        name="cispo",
        paper=Paper("MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention", "2506.13585"),
        summary="Clip the importance weight, detached, and keep every token's gradient.",
        objective=ClippedWeight(floor=0.0, cap=5.0),
        average=TokenMean(),
        regularisers=(),
        notes=(
            "The cap is the absolute bound on the ratio (5), as in TRL and ScaleRL; verl writes offsets from 1.",
            "The loss value contains log pi and cannot be compared between steps.",
        ),
        doubts=(
            "The paper's cap is not given; ScaleRL finds 4 to 8 equally good.",
            "Whether the published runs used a KL guard.",
        ),
    )
)
