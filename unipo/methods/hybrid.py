"""Sampled responses and demonstrations together."""

from unipo.method import Paper, Term
from unipo.methods.grpo import dr_grpo
from unipo.parts.average import ConstantSum, TokenMean
from unipo.parts.demonstration import DemonstrationGate, OnRows
from unipo.parts.preference import LogLikelihood
from unipo.parts.regulariser import EntropyBonus
from unipo.parts.source import Mixed
from unipo.parts.surrogate import CappedSurrogate
from unipo.registry import register

hpt = register(
    dr_grpo.but(
        name="hpt",
        paper=Paper(
            "Towards a Unified View of Large Language Model Post-Training",
            "2509.04419",
            "TsinghuaC3I/Unify-Post-Training",
        ),
        summary="Learn from a question's demonstration while all its responses fail, from the responses afterwards.",
        source=Mixed(group_size=8),
        selection=(DemonstrationGate(most=0),),
        objective=CappedSurrogate(),
        average=OnRows(ConstantSum(), "sampled"),
        extra=(
            Term(LogLikelihood(), OnRows(TokenMean(), "demonstration"), 1.0),
            Term(EntropyBonus(strength=1.0), TokenMean(), 0.001),
        ),
        defaults={"learning_rate": 5e-6, "skip_grad_norm": 80.0},
        notes=(
            "The demonstration is the response in the prompt's data row; a failed prompt without one is left out.",
            "As released: advantage without std, ratio without clip, token sum divided by the response budget.",
            "Each term has its own denominator: the policy gradient's is the budget alone, the likelihood's is the "
            "number of demonstrated tokens, so their relative size grows with the number of sampled tokens.",
            "The weight of the likelihood is extra.0.coefficient: 1, and 0.3 for Qwen2.5-Math-1.5B.",
            "The gate is selection.0.most: 0 for Qwen2.5-Math, 2 for Llama-3.1-8B.",
            "A step whose gradient norm exceeds 80 is left out and counted; a norm that is not finite stops the run "
            "here, where the released code passes over it.",
            "128 questions a step and two updates in the paper: prompts=128, source.minibatches=2.",
        ),
        doubts=(
            "LUFFY's and SRFT's rows of the paper's table, offline parts of other losses, are not built.",
            "The mixed normalisation is what the code does, per micro-batch; the paper does not stress it.",
            "GRPO's std stands in the paper's table, but not in the released runs (advantage=GroupNormalised()).",
            "How the paper chose its gate. The code's bands with off-policy learning from the demonstration, its soft "
            "tables, and its removal of learnt questions are not built.",
        ),
        limits=(
            "It needs demonstrations: a question whose responses all fail and that has none is left out.",
            "At a gate of 0, one right response shuts the demonstration out. The ratio is not clipped.",
        ),
    )
)
