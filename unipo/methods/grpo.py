"""GRPO and its repairs: the group is the baseline."""

from unipo.method import Method, Paper
from unipo.parts.advantage import GroupCentred, GroupNormalised
from unipo.parts.average import ConstantNormaliser, SequenceMean, TokenMean
from unipo.parts.objective import Clipped
from unipo.parts.regulariser import ReferenceKL
from unipo.parts.selection import DynamicSampling
from unipo.parts.shaping import SoftOverlong
from unipo.parts.source import OnPolicy
from unipo.registry import register

grpo = register(
    Method(
        name="grpo",
        paper=Paper("DeepSeekMath: Pushing the Limits of Mathematical Reasoning", "2402.03300", "huggingface/trl"),
        summary="Clipped surrogate with the group's mean and standard deviation as baseline and scale.",
        source=OnPolicy(group_size=8),
        advantage=GroupNormalised(eps=1e-4),
        objective=Clipped(low=0.2, high=0.2),
        average=SequenceMean(),
        regularisers=(ReferenceKL(beta=0.04, estimator="k3"),),
        defaults={"learning_rate": 1e-6},
        notes=(
            "The average is the paper's: over tokens inside a response, then over responses.",
            "beta = 0.04 is the paper's; with beta = 0 no reference model is loaded or run.",
            "k3 in the loss follows the gradient of KL(ref||pi); regularisers.0.corrected=true follows KL(pi||ref).",
            "Groups whose rewards are all equal get exactly 0; with beta = 0 they are not computed at all.",
        ),
        doubts=("Whether DeepSeek's own standard deviation is biased; libraries use the unbiased one.",),
    )
)

grpo_token = register(
    grpo.but(
        name="grpo-token",
        summary="GRPO with every token of the batch weighing the same, the form most libraries run by default.",
        average=TokenMean(),
        regularisers=(ReferenceKL(beta=0.0, estimator="k3"),),
        notes=(
            "verl's defaults and TRL (loss_type='dapo') call this GRPO: token mean, no KL. OpenRLHF's default adds a k1 KL of "
            "0.01 to the reward.",
        ),
    )
)

dr_grpo = register(
    grpo.but(
        name="dr-grpo",
        paper=Paper(
            "Understanding R1-Zero-Like Training: A Critical Perspective", "2503.20783", "sail-sg/understand-r1-zero"
        ),
        summary="GRPO without its two biases: no division by the response's length, none by the group's std.",
        advantage=GroupCentred(),
        average=ConstantNormaliser(),
        regularisers=(),
        aliases=("dr_grpo",),
        notes=("The constant is the generation budget (max_tokens) unless average.length is set.",),
        doubts=("The constant when the context window differs from the generation budget.",),
    )
)

dapo = register(
    grpo.but(
        name="dapo",
        paper=Paper("DAPO: An Open-Source LLM Reinforcement Learning System at Scale", "2503.14476", "volcengine/verl"),
        summary="GRPO with a wider upper clip, informative prompts only, token mean and a soft length penalty.",
        source=OnPolicy(group_size=16),
        selection=(DynamicSampling(rounds=10),),
        shaping=(SoftOverlong(),),
        advantage=GroupNormalised(eps=1e-6),
        objective=Clipped(low=0.2, high=0.28),
        average=TokenMean(),
        regularisers=(),
        defaults={"learning_rate": 1e-6, "warmup_steps": 20, "weight_decay": 0.1},
        notes=(
            "Prompts are kept by the task's own score, not by the reward with the length term in it.",
            "The length penalty starts a fifth of the budget before the limit (4096 of 20480 in the paper).",
            "The paper's reward is +1/-1; a 0/1 reward gives the same advantages up to eps and the penalty's size.",
            "verl's scripts add a dual clip of 10 (objective.dual=10), which is not in the paper.",
            "Each of the four changes can be switched alone: selection=(), shaping=(), objective.high=0.2, average.",
            "The paper makes 16 updates per batch: source.minibatches=16.",
        ),
        doubts=(
            "Whether the paper's mini-batch is 512 responses or prompts.",
            "Whether surplus qualifying prompts are re-used; verl drops them (selection.0.surplus=keep buffers them).",
        ),
    )
)
