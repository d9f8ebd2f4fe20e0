"""Policy optimisation as regression inside a group."""

from unipo.method import Paper
from unipo.methods.grpo import grpo
from unipo.parts.average import GroupMean
from unipo.parts.regression import GroupRegression
from unipo.parts.regulariser import ReferenceKL
from unipo.registry import register

reg_grpo = register(
    grpo.but(
        name="reg-grpo",
        paper=Paper(
            "DeepVideo-R1: Video Reinforcement Fine-Tuning via Difficulty-aware Regressive GRPO",
            "2506.07464",
            "mlvlab/DeepVideoR1",
        ),
        summary="Regress the group's standardised log-ratios on its standardised rewards, without clip.",
        objective=GroupRegression(eps=0.1),
        average=GroupMean(),
        regularisers=(ReferenceKL(beta=0.1, estimator="k3"),),
        notes=(
            "Advantages are standardised once more over the responses with counted tokens, with the biased std.",
            "At the first update of a batch it is a plain policy gradient of size 2/eps; it regresses from the second on "
            "(source.minibatches or source.epochs).",
            "The scale of the log-ratios is free: the KL to the reference and the optimiser alone set the step.",
            "The paper's other half, harder or easier prompts by noise on video frames and by hints, is not built.",
        ),
        doubts=(
            "How the authors treat the first step, where all log-ratios are 0: eps is ours.",
            "Sum or mean over tokens in the log-ratio (sum here), updates per batch (1 here).",
            "The authors' code could not be read.",
        ),
        limits=(
            "The scale of the log-ratios is free, and drifts where the KL to the reference is weak.",
            "With one update per batch it is an unclipped policy gradient.",
        ),
    )
)
