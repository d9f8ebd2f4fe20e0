"""The policy taught by itself: under a prompt that shows more, it knows better."""

from unipo.method import Method, Paper
from unipo.parts.average import TokenMean
from unipo.parts.source import OnPolicy, Solved
from unipo.parts.teacher import Distillation, SiblingTeacher, SolutionTeacher
from unipo.registry import register

opsd = register(
    Method(
        name="opsd",
        paper=Paper("OPSD: On-Policy Self-Distillation", "2601.18734", "siyan-zhao/OPSD"),
        summary="Towards the initial model's distribution when it is shown the solution, on the policy's own responses.",
        source=Solved(group_size=1),
        selection=(SolutionTeacher(),),
        objective=Distillation(kind="jsd", beta=0.5, temperature=1.1, weights="reference"),
        average=TokenMean(),
        defaults={"learning_rate": 2e-4},
        notes=(
            "The teacher is the initial policy: adapters off with LoRA (rank 64 in the paper), else a frozen copy.",
            "The solution is the response in the prompt's data row; a prompt without one is left out.",
            "One pass of the teacher without gradient over the longer prompts; logits are made in chunks.",
            "The reward is measured and reported, but teaches nothing.",
            "The authors sample at the loss's temperature too (sampling.temperature=1.1). 2e-4 is their rate for adapters of "
            "rank 64 on 1.7 billion weights; 2e-5 on 4 billion.",
            "The form at the sampled token alone: objective.kind=sampled, objective.temperature=null.",
        ),
        doubts=(
            "The teacher's words are a setting (selection.0.template) with a wording of our own.",
            "In the repository the teacher may first write an explanation of the solution; that is not built.",
        ),
        limits=(
            "Needs worked solutions; it cannot get better than the initial model is when it is shown one.",
            "Whole distributions of two models; scores of the responses are not used, so a wrong solution is followed too.",
        ),
    )
)

sdpo = register(
    opsd.but(
        name="sdpo",
        paper=Paper("SDPO: Reinforcement Learning via Self-Distillation", "2601.20802", "lasgroup/SDPO"),
        summary="Towards a slow copy's distribution when it is shown a right response of the same group.",
        source=OnPolicy(group_size=8),
        selection=(SiblingTeacher(),),
        objective=Distillation(kind="jsd", beta=0.5, top=100, cap=2.0, weights="reference"),
        defaults={"learning_rate": 1e-5, "reference": "ema", "reference_decay": 0.95},
        notes=(
            "The teacher is an average of past weights: after each update it moves 5 % of the way.",
            "A response is never shown to itself; without another right one it leaves numerator and denominator.",
            "What the shown response thought is taken out (selection.0.thinking=true keeps it).",
            "Tokens: the policy's 100 likeliest, and one bucket for the rest.",
            "kind=reverse_kl is the code's alpha 0, kind=kl its alpha 1.",
            "32 prompts with groups of 8 in the paper.",
        ),
        doubts=(
            "Feedback of an environment, shown where no right response exists, is not built: rewards give no words.",
            "The code cuts teacher prompts beyond its limit; here one that does not fit stops the run.",
            "The teacher's words are a setting (selection.0.template) with a wording of our own.",
        ),
        limits=(
            "A response without a right sibling teaches nothing, so questions that the group never solves are not learnt.",
            "A second copy of the weights, and a pass of it over longer prompts.",
        ),
    )
)
