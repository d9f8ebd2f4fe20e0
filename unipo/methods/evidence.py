"""Self-distillation from evidence: the model itself, shown an answer, says which tokens mattered."""

from unipo.method import Paper
from unipo.methods.grpo import grpo
from unipo.parts.advantage import GroupNormalised
from unipo.parts.average import TokenMean
from unipo.parts.credit import EvidenceCredit
from unipo.parts.objective import Clipped
from unipo.registry import register

rlsd = register(
    grpo.but(
        name="rlsd",
        paper=Paper("RLSD: RLVR with self-distillation", "2604.03128", "ahmedheakl/CEPO"),
        summary="Rescale each token by how much likelier it is when the right answer is shown.",
        advantage=GroupNormalised(eps=1e-6),
        credit=(EvidenceCredit(contrastive=False, strength=0.5, clip=0.2, decay_steps=50, offset=0),),
        objective=Clipped(low=0.2, high=0.28, dual=3.0),
        average=TokenMean(),
        regularisers=(),
        notes=(
            "One extra pass without gradient over prompts with a non-zero advantage.",
            "strength decays linearly to 0 over decay_steps; the pass stops with it.",
        ),
        doubts=(
            "The RLSD paper's text was not read, only its re-implementation in ahmedheakl/CEPO.",
            "In the shipped RLSD run every reference is the empty string, so its numbers may not represent RLSD.",
        ),
    )
)

cepo = register(
    rlsd.but(
        name="cepo",
        paper=Paper(
            "CEPO: RLVR Self-Distillation using Contrastive Evidence Policy Optimization",
            "2605.19436",
            "ahmedheakl/CEPO",
        ),
        summary="Rescale each token by how much likelier it is under the right answer than under a wrong one.",
        credit=(EvidenceCredit(contrastive=True, strength=0.5, clip=0.2, decay_steps=25, offset=1),),
        notes=(
            "Two extra passes without gradient over prompts with a non-zero advantage.",
            "The wrong answer is the final answer of the group's lowest-scored rejected response that has one.",
            "The shipped run makes two updates per batch: source.minibatches=2.",
            "A group without a usable wrong answer keeps its plain advantage (as the code; the text says RLSD).",
        ),
        doubts=(
            "Whether the gain survives equal learning rates: the shipped scripts give CEPO five times its baselines' rate.",
            "clip is 0.2 in the shipped run, 0.5 in the repository's README.",
            "In the authors' code both teachers see padding in place of images; here they see the images.",
        ),
    )
)
