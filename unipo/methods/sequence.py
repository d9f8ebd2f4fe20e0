"""Methods whose likelihood unit is the whole response."""

from unipo.method import Paper
from unipo.methods.grpo import grpo
from unipo.parts.objective import SequenceClipped
from unipo.registry import register

gspo = register(
    grpo.but(
        name="gspo",
        paper=Paper("Group Sequence Policy Optimization", "2507.18071", "volcengine/verl"),
        summary="One length-normalised ratio and one clip per response.",
        objective=SequenceClipped(low=3e-4, high=4e-4),
        regularisers=(),
        notes=(
            "The clip is two to three orders smaller than a token clip, because the geometric mean moves little.",
            "objective=SequenceClippedToken() is GSPO-token, for advantages that differ inside a response.",
            "Four mini-batches per batch in the paper: source.minibatches=4.",
        ),
        doubts=("The authors' full hyper-parameter table (group size, learning rate) is not public.",),
    )
)
