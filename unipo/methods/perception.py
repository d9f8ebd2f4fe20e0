"""Methods that make the policy read what it is shown."""

from unipo.method import Paper
from unipo.methods.grpo import dapo, grpo
from unipo.parts.average import TokenMean
from unipo.parts.objective import Clipped
from unipo.parts.perception import Perception, SampledEntropy
from unipo.parts.regulariser import ReferenceKL
from unipo.parts.source import OnPolicy
from unipo.registry import register

PAPER = Paper("Perception-Aware Policy Optimization for Multimodal Reasoning", "2507.06448", "MikeWangWZHL/PAPO")
STILL = "Groups without variance still receive the perception gradient."
NOTES = (
    "Prompts with images: squares of 14 pixels are blacked out, one draw per prompt; prompts without one are skipped.",
    "Data without images: tokens of the prompt are replaced. What may be destroyed is the whole prompt, or what stands between two markers (regularisers.N.context.opening).",
    "One extra pass without gradient, by the policy that sampled, over prompts with something to destroy.",
    STILL,
    "The released double entropy loss has a second half without gradient, which is left out.",
    "The paper makes 3 updates per batch (384 prompts, mini-batches of 128): source.minibatches=3. With one, the entropy "
    "term of papo-dapo has no gradient in expectation.",
)
DOUBTS = (
    "The released entropy of the corrupted pass is a constant; whether published runs ever gave it a gradient.",
    "Whether destroying tokens of a text prompt does what destroying patches of an image does.",
)

papo = register(
    grpo.but(
        name="papo",
        paper=PAPER,
        summary="Pay the policy for differing from itself when part of its prompt is destroyed.",
        source=OnPolicy(group_size=5),
        objective=Clipped(low=0.2, high=0.3, dual=3.0),
        average=TokenMean(),
        regularisers=(ReferenceKL(beta=0.01, estimator="k3"), Perception(gamma=0.02)),
        notes=NOTES,
        doubts=DOUBTS,
        limits=(
            "Collapses when the term is strong (gamma 0.04 in the paper): differing from the blind policy is unbounded pay.",
            "One extra pass per batch; nothing to gain where the prompt has no part that an answer must read.",
        ),
    )
)

papo_dapo = register(
    dapo.but(
        name="papo-dapo",
        paper=PAPER,
        summary="DAPO with the perception term, and the entropy term that keeps it from being hacked.",
        source=OnPolicy(group_size=5),
        shaping=(),
        regularisers=(Perception(gamma=0.01), SampledEntropy(eta=0.03)),
        defaults={"learning_rate": 1e-6, "weight_decay": 0.01},
        notes=tuple(n for n in NOTES if n != STILL),
        doubts=DOUBTS,
        limits=(
            "Without its entropy term it collapses (7 billion weights, in the paper).",
            "One extra pass per batch; nothing to gain where the prompt has no part that an answer must read.",
        ),
    )
)
