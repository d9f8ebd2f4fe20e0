"""Maximum likelihood of demonstrations."""

from unipo.method import Method, Paper
from unipo.parts.average import TokenMean
from unipo.parts.preference import LogLikelihood
from unipo.parts.source import Demonstrations
from unipo.registry import register

sft = register(
    Method(
        name="sft",
        paper=Paper("Supervised fine-tuning (practice; DFT as variant)", "2508.05629", "huggingface/trl"),
        summary="Raise the likelihood of demonstrated responses.",
        source=Demonstrations(),
        objective=LogLikelihood(),
        average=TokenMean(),
        defaults={"learning_rate": 2e-5},
        notes=(
            "The end-of-turn token is a target; prompt and tool tokens are not.",
            "The denominator is the number of target tokens of the whole optimiser step, over all micro-batches and ranks.",
            "objective.dynamic=true gives DFT: each token weighted by its own detached probability.",
        ),
        doubts=("The gains DFT reports on mathematics were not verified by the source read.",),
    )
)
