"""TOPR against plain off-policy REINFORCE: many updates on one large batch of samples."""

from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.logs import fall

OLD = "source.minibatches=32,source.epochs=2"

REPRODUCTION = Reproduction(
    method="topr",
    claim="Tapering off the bad responses that the policy has left makes off-policy REINFORCE learn more than full weight "
    "on them does.",
    arms={
        "topr": f"topr[{OLD}]",
        "reinforce": f"topr[{OLD},objective=Tapered(negative=(1.0, 1.0))]",
        "ppo": f"topr[{OLD},objective=Clipped()]",
    },
    metrics=(ACCURACY, Metric("fall", "largest fall of held-out accuracy below its best so far", higher=False)),
    measure=fall,
    budget="60000 tokens",
    responses=512,
    points=9,
    train={"eval": {"prompts": 256}},
    search={"lr": (2.5e-5, 5e-5, 1e-4, 2e-4)},
    seeds=6,
    notes="Each batch of 512 responses serves 64 updates, two passes of 32, so that most updates are far from the policy "
    "that sampled; the paper makes one pass over some 100,000. PPO's surrogate has the same rewards of 1 and -1 and a "
    "clip of 0.2. AdamW instead of Adafactor. Collapse shows in the search, where full weight falls furthest at high rates; each arm then has "
    "its own best rate.",
)
