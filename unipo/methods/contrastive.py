"""Regression on differences of the regularised reward."""

from unipo.method import Method, Paper
from unipo.parts.average import GroupMean
from unipo.parts.contrastive import Contrastive
from unipo.parts.source import OnPolicy
from unipo.registry import register

copg = register(
    Method(
        name="copg",
        paper=Paper(
            "Contrastive Policy Gradient: Aligning LLMs on sequence-level scores in a supervised-friendly fashion",
            "2406.19185",
        ),
        summary="Regress differences of the KL-regularised reward between the answers to a prompt to zero.",
        source=OnPolicy(group_size=2),
        objective=Contrastive(beta=0.05),
        average=GroupMean(),
        defaults={"learning_rate": 1e-6},
        notes=(
            "No ratio, clip, value or old policy: the answers may come from any distribution with full support.",
            "With more than two answers per prompt (source.group_size) the other answers' mean is the baseline.",
            "Log-probs are summed over the answer, end token included, without division by length.",
            "objective.form=score or product has the same gradient over 2 beta, and stays alive at beta = 0.",
            "Equal rewards still pull the two log-ratios together.",
        ),
        doubts=(
            "The authors' constant in front of the loss and their settings: beta 0.01 to 0.1 is recalled, 0.05 here.",
            "Rewards are to be on a unit scale; none is applied here.",
        ),
        limits=(
            "Responses that the data never hold are fixed only up to normalisation, so narrow data leave the policy free.",
            "Logged answers with scores, the paper's main setting, have no source yet: off-policy are further updates on "
            "sampled batches.",
            "Log-ratios are sums over tokens: with long responses the squared differences, and their gradients, grow.",
        ),
    )
)
