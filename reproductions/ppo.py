"""PPO's clip against the same surrogate without it, over several epochs of each batch."""

from pathlib import Path

from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY, AREA
from unipo.reproduce.logs import late


def moved(run: Path) -> dict[str, float]:
    """How far the policy is from the one that sampled: mean over all updates of a batch, and over the run."""
    return {"moved": late(run, "kl/old", share=1.0)}


REPRODUCTION = Reproduction(
    method="ppo",
    claim="Clipping the ratio keeps the policy near the one that sampled, so that a batch can serve several epochs: it "
    "learns more than the same surrogate without a clip.",
    arms={
        "ppo": "ppo[source.minibatches=4,value.learning_rate=1e-3]",
        "no clip": "ppo[source.minibatches=4,value.learning_rate=1e-3,objective=CappedSurrogate()]",
        "reinforce": "reinforce",
    },
    metrics=(ACCURACY, AREA, Metric("moved", "nats per token from the sampling policy", higher=False, kind="number")),
    measure=moved,
    budget="30000 tokens",
    search={"lr": (5e-5, 1e-4, 2e-4)},
    notes="Four epochs of four mini-batches, 16 updates per batch; the paper has ten epochs, of robot control. The value "
    "model's learning rate is 1e-3 instead of 1e-5, as it has 19 batches to learn in. Value clip, KL in the reward and "
    "lambda are the method's. REINFORCE makes one update per batch.",
)
