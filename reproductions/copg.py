"""CoPG against RLOO with the same KL in its reward: many updates on one large batch of samples."""

from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.logs import fall

OLD = "source.minibatches=16,source.epochs=2"
PLAIN = "objective=ScoreFunction(),average=SequenceSum()"

REPRODUCTION = Reproduction(
    method="copg",
    claim="Taking the regularised reward of the other response as baseline, under the current policy, is right off-policy "
    "without importance weights: on old samples it learns more than the policy gradient without them.",
    arms={
        "copg": f"copg[{OLD}]",
        "policy gradient": f"rloo[source.group_size=2,{OLD},{PLAIN}]",
        "clipped ratio": f"rloo[source.group_size=2,{OLD}]",
    },
    metrics=(ACCURACY, Metric("fall", "largest fall of held-out accuracy below its best so far", higher=False)),
    measure=fall,
    budget="60000 tokens",
    responses=512,
    points=9,
    train={"eval": {"prompts": 256}},
    search={"lr": (5e-5, 1e-4, 2e-4)},
    seeds=6,
    notes="Each batch of 512 responses, two per prompt, serves two passes of 16 updates, so that most updates are "
    "off-policy; the paper trains offline on logged summaries. The policy gradient is RLOO: the same pairs, the same KL "
    "of 0.05, but reckoned once, under the policy that sampled, and no ratio. The third arm has RLOO's clipped ratio of "
    "sequences.",
)
