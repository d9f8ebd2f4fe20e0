"""Choosing the mode of an answer with its first token."""

from unipo.method import Paper, Term
from unipo.methods.grpo import dr_grpo
from unipo.parts.average import TokenMean
from unipo.parts.control_token import ControlSplit
from unipo.parts.regulariser import ReferenceKL
from unipo.parts.source import OnPolicy
from unipo.registry import register

degrpo = register(
    dr_grpo.but(
        name="degrpo",
        paper=Paper("Thinkless: LLM Learns When to Think", "2505.13379", "VainF/Thinkless"),
        summary="Dr. GRPO with the first token, which chooses the mode, and the answer averaged apart.",
        source=OnPolicy(group_size=8, minibatches=2),
        average=ControlSplit(alpha=1e-3),
        extra=(Term(ReferenceKL(beta=1.0, estimator="k3"), TokenMean(), 1e-3),),
        defaults={"learning_rate": 1e-6},
        notes=(
            "The second part is a mean over all answer tokens of the minibatch, as the code; average.rest=sequence is "
            "the paper's mean of per-response means.",
            "The reward is the task's.  The paper's, by mode, is shaping=(ModeReward(),): it needs a model that begins "
            "with <short> or <think>, which the paper makes by supervised fine-tuning first.",
            "The code's filter of groups with equal rewards is off by default there and left out here.",
            "The KL to the reference is a token mean with coefficient 0.001, outside of the split.",
            "The authors sample at temperature 0.6 (sampling.temperature=0.6).",
        ),
        doubts=("The published accuracies are recalled, the loss and defaults are from code.",),
        limits=(
            "Needs a model that already answers in both modes, made by supervised fine-tuning first.",
            "The weight of the control token does not know how long responses are, and has to be set for it.",
        ),
    )
)
