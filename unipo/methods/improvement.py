"""Closing the loop: did the last update really help?"""

from unipo.method import Paper
from unipo.methods.grpo import grpo
from unipo.parts.guard import ImprovementGate
from unipo.registry import register

pipo = register(
    grpo.but(
        name="pipo",
        paper=Paper("PIPO: Policy Improvement Reinforcement Learning", "2604.00860", "JacckMa/pipo_verl"),
        summary="Push again along the last update if the next batch scores better than the recent past, back if worse.",
        guard=ImprovementGate(window=8, backward=0.1),
        aliases=("pirl",),
        defaults={"learning_rate": 1e-6},
        notes=(
            "It wraps any method that samples: get_method('dapo').but(guard=ImprovementGate()), and gspo likewise.",
            "The extra update uses the method's own surrogate (guard.objective names another), without KL and other "
            "terms, and its ratio is against the policy that sampled the stored batch.",
            "Until the window is full, and where xi is 0, every bit is the base method's.",
            "The mean reward is that of everything sampled, dropped prompts included, before shaping.",
            "The released code differs: guard.inclusive=true, guard.largest_gap=5, guard.largest_push=10, "
            "guard.objective='CappedSurrogate(cap=1.2)'.",
            "The paper's base has KL 0.001 (regularisers.0.beta=0.001) and two updates per batch "
            "(source.minibatches=2).",
        ),
        doubts=(
            "On a plateau xi is mostly noise; the theory assumes that phi(xi) has the sign of the true improvement.",
            "Adam divides by the gradient's own size, so the size of phi matters less than its sign.",
            "Which version of the code made the tables.",
            "The released PPO variant also scales the present batch's advantages by clip(xi, -2, 2); that is not built.",
            "Whether the extra update takes one step or the usual number of mini-batches; one here.",
        ),
        limits=(
            "On a plateau, or with small batches, the sign of the extra update is mostly noise.",
            "The last batch is kept and trained on again: 40 to 49 % more wall-clock in the paper, without a critic.",
        ),
    )
)
