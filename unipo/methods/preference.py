"""Learning from ranked responses."""

from unipo.method import Method, Paper
from unipo.parts.average import GroupMean
from unipo.parts.preference import DPO
from unipo.parts.source import Preferences
from unipo.registry import register

dpo = register(
    Method(
        name="dpo",
        paper=Paper(
            "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
            "2305.18290",
            "eric-mitchell/direct-preference-optimization",
        ),
        summary="Binary classification of preferred against rejected responses, through the policy itself.",
        source=Preferences(),
        objective=DPO(beta=0.1),
        average=GroupMean(),
        defaults={"learning_rate": 5e-7, "max_grad_norm": 10.0, "warmup_steps": 150},
        notes=(
            "Log-probs are summed over the response, end token included, without division by length.",
            "The reference is the initial policy; its log-probs are computed once per batch.",
            "The official code uses RMSprop; AdamW here.",
            "Dropout is off.",
        ),
        doubts=("The published win rates are recalled, the loss and defaults are from code.",),
        limits=(
            "On pairs that are always ranked the same way the loss has no minimum: margins grow without end.",
            "Only the difference counts, and only on the pairs there are: both responses may become less likely.",
        ),
    )
)
