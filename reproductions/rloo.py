"""RLOO against REINFORCE: how noisy the gradient is at the same number of samples."""

from pathlib import Path

import unipo.reproduce.tasks  # noqa: F401  (registers the task "mixture")
from unipo.compare.outcome import lines
from unipo.reproduce import Metric, Reproduction

WARM = 10  # steps until REINFORCE's running baseline has settled


def noise(run: Path) -> dict[str, float]:
    """Mean squared gradient norm. The weights do not move and both estimators are unbiased, so it is the squared norm
    of the one true gradient plus the estimator's own variance."""
    norms = [m["grad_norm"] for m in lines(run, "metrics") if "grad_norm" in m]
    settled = norms[WARM:] or norms
    return {"squared_norm": sum(n * n for n in settled) / len(settled)}


REPRODUCTION = Reproduction(
    method="rloo",
    claim="The mean reward of a prompt's other responses is a better baseline than a running mean: the policy gradient "
    "has less variance at the same number of samples.",
    arms={
        "rloo": "rloo[objective=ScoreFunction(),average=SequenceSum(),shaping=[]]",
        "reinforce": "reinforce",
    },
    metrics=(Metric("squared_norm", "mean squared norm of the gradient", higher=False, kind="number"),),
    measure=noise,
    task="mixture",
    budget="60 steps",
    points=0,
    train={"optim": {"learning_rate": 1e-12}, "eval": {"prompts": 8}},
    notes="The weights are held still (learning rate 1e-12), so that both arms estimate one gradient. RLOO is in the "
    "paper's form, without KL. The prompts differ in how often they pay (40 % always, 40 % never), which is what a "
    "baseline of the prompt's own can know; RLOO spends its samples on a quarter of the prompts.",
)
