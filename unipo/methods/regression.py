"""Policy optimisation as regression inside a group."""

from unipo.method import Paper
from unipo.methods.grpo import grpo
from unipo.parts.augmentation import DifficultyAugmentation
from unipo.parts.average import GroupMean
from unipo.parts.regression import GroupRegression
from unipo.parts.regulariser import ReferenceKL
from unipo.registry import register

_VISION = "The authors freeze the vision encoder (--policy.vision frozen); here it is trained with the rest."

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
            _VISION,
            "The paper's other half, prompts made harder or easier, is `deepvideo-r1`.",
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

deepvideo_r1 = register(
    reg_grpo.but(
        name="deepvideo-r1",
        summary="Reg-GRPO whose hard prompts get the beginning of a solution, and whose easy ones get noise on their images.",
        curriculum=DifficultyAugmentation(),
        notes=(
            *reg_grpo.notes[:4],
            "Hard and easy are measured against the mean reward of the last 100 groups; the first step changes nothing.",
            "A changed prompt is sampled as a group in the place of the original (beside it with curriculum.keep_original=true).",
            "Prompts of words alone have no images to disturb: only hard ones are changed.",
            "Frames of a video are the images of a prompt.",
        ),
        doubts=(
            *reg_grpo.doubts,
            "How the strengths of hint and noise grow with the difference of rewards: linear up to curriculum.full = 0.5 here.",
            "Whether the original is trained on as well.",
        ),
        limits=(
            *reg_grpo.limits,
            "Every prompt is sampled twice, and hard ones need solutions sampled with the answer in view.",
            "A hint may give the answer away, where most of a solution is shown.",
        ),
    )
)
