"""Credit by segment, valued by sampling on."""

from unipo.method import Paper, Term
from unipo.methods.grpo import grpo
from unipo.parts.average import SequenceSum, TokenMean
from unipo.parts.objective import Clipped
from unipo.parts.regulariser import ReferenceKL
from unipo.parts.segment import SegmentDifference, TreeDifference, Uncertain
from unipo.parts.source import OnPolicy, SegmentTree
from unipo.parts.token_shaping import TruncatedReward
from unipo.registry import register

_GUARD = (
    "The authors' code multiplies a micro-batch's loss by 0 when its mean ratio exceeds 10, and clamps log-ratios to "
    "10 (here 20). The first is left out: the gradient would depend on how the batch is cut."
)
_SAMPLING = "The authors sample at temperature 0.6 with top_p 0.9; training here samples from the whole distribution."

spo_segment = register(
    grpo.but(
        name="spo-segment",
        paper=Paper(
            "Segment Policy Optimization: Effective Segment-Level Credit Assignment in RL for Large Language Models",
            "2505.23564",
            "AIFrameResearch/SPO",
        ),
        summary="Cut responses at uncertain tokens, value each cut by sampling on, credit segments by the rise.",
        source=OnPolicy(group_size=8, epochs=2),
        selection=(Uncertain(threshold=0.9),),
        shaping=(TruncatedReward(0.0),),
        advantage=SegmentDifference(threshold=0.9, interval=5, continuations=9),
        objective=Clipped(low=0.2, high=0.2),
        average=TokenMean(),
        regularisers=(),
        extra=(Term(ReferenceKL(beta=1.0, estimator="k3"), SequenceSum(), 1e-4),),
        defaults={"learning_rate": 1e-6},
        aliases=("spo-chain",),
        notes=(
            "SPO-chain. The cut state is the prefix that ends just before an uncertain token; before the first token "
            "it is the prompt. Tokens before the first cut get advantage 0 (before standardising).",
            "Loss and denominator count tokens with p < 0.9 under the weights that sampled them. The code recomputes "
            "p with the trainer; with an exact engine both are the same number.",
            "A continuation that runs out of tokens has reward 0, like the response itself.",
            "Continuations are the cost: about (uncertain tokens / 5) times 9 per response (tokens/continued). "
            "Long chains of thought: advantage.continuations=4, source.epochs=1.",
            "The KL term is summed over the counted tokens of a response and averaged over responses that have any.",
            _SAMPLING,
            _GUARD,
        ),
        doubts=("What the paper calls the mask ratio.",),
        limits=(
            "Costs many times the sampled tokens: continuations from every cut of every response, all of them scored.",
            "A response whose tokens were all likelier than the threshold gives no gradient.",
        ),
    )
)

spo_tree = register(
    spo_segment.but(
        name="spo-tree",
        summary="Sample a tree of fixed-length segments, value its nodes by the leaves below, credit every edge.",
        source=SegmentTree(branching=(6, 6, 6), segment=600, edges=32, keep=8),
        shaping=(),
        advantage=TreeDifference(scale=False),
        notes=(
            "Edges that leave one node are a group: the path to it is their prompt and is forwarded once.",
            "Metrics named reward/ and score/ are of the edges trained on; reward/leaf is the mean reward of whole "
            "responses.",
            "Edges used at a later step keep the log-probs of the weights that sampled them for the mask; their ratio "
            "is to the policy at the start of the step, which costs a pass where there are several updates per batch.",
            _SAMPLING,
            _GUARD,
        ),
        doubts=(
            "Whether the published tree runs divide by the siblings' standard deviation (advantage.scale=true).",
            "Whether that deviation is biased; population here.",
        ),
        limits=(
            "A tree of 6-6-6 has up to 216 leaves per prompt; 32 edges are used at a step, and those of later steps are stale.",
            "Segments have a fixed length, so cuts fall where they may and not where the policy was unsure.",
        ),
    )
)
