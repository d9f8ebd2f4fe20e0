"""Reg-GRPO against GRPO with several updates per batch of samples."""

from unipo.reproduce import Reproduction
from unipo.reproduce.claim import ACCURACY, AREA

MANY = "source.epochs=4"
KL = "regularisers=ReferenceKL(beta=0.1)"

REPRODUCTION = Reproduction(
    method="reg-grpo",
    claim="Regressing the group's standardised log-ratios on its standardised rewards learns more than GRPO's clipped "
    "policy gradient.",
    arms={
        "reg-grpo": f"reg-grpo[{MANY}]",
        "grpo": f"grpo[{MANY},{KL}]",
        "unclipped": f"grpo[{MANY},{KL},objective=ImportanceWeighted()]",
    },
    metrics=(ACCURACY, AREA),
    budget="50000 tokens",
    search={"lr": (5e-5, 1e-4, 2e-4)},
    seeds=6,
    notes="Four updates per batch, because at the first one the regression is a plain policy gradient. The KL to the "
    "reference has the paper's coefficient of 0.1 in every arm. Text instead of video, and without the paper's other "
    "half, which makes prompts harder or easier.",
)
