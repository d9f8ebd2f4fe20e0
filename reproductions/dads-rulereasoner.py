"""Domains drawn by how far they are below the target, against a uniform mixture: what becomes of the weakest?"""

from collections import defaultdict
from pathlib import Path

from unipo.command.evaluate import EVAL_SEED, measure
from unipo.command.models import encode, load
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY, STARTER
from unipo.rollout.engine import Sampling
from unipo.tasks.registry import resolve_task
from unipo.training.checkpoint import newest_good
from unipo.training.config import DataConfig

TASK = 'scratchpad?kinds=["mod","chain","sort","reverse"]'


def weakest(run: Path) -> dict[str, float]:
    """Held-out accuracy of the trained model in its worst domain, two responses to each of 128 problems."""
    found = newest_good(run / "checkpoints")
    assert found is not None
    policy, task, sampling = load(str(found[1] / "model")), resolve_task(TASK), Sampling(**STARTER["sampling"])
    assert task.reward is not None
    prompts = encode(policy, task.heldout, DataConfig(), sampling.max_tokens)[0]
    measured = measure(policy, prompts, task.reward, sampling, 2, EVAL_SEED)
    domains = defaultdict(list)
    for prompt, scores in zip(prompts, measured.scores, strict=True):
        domains[prompt.example.row["kind"]] += scores
    return {"weakest": min(sum(scores) / len(scores) for scores in domains.values())}


REPRODUCTION = Reproduction(
    method="dads-rulereasoner",
    claim="Drawing more prompts from the domains whose mean reward is furthest below the target ends with a better weakest "
    "domain than a uniform mixture, at no cost to the mean.",
    arms={
        "dads": "dads-rulereasoner[source.group_size=8]",
        "uniform": "dads-rulereasoner[source.group_size=8,curriculum.tau=1e9]",
    },
    metrics=(Metric("weakest", "held-out accuracy in the weakest domain"), ACCURACY),
    measure=weakest,
    task=TASK,
    budget="80000 tokens",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="Four domains of 40 to 69 % at the start, 8 prompts of 8 responses per step; the paper has eight of rules and "
    "64 prompts of 64 responses. Both arms draw by domain, the second with an infinite temperature, so that only the "
    "weights differ. About seven renewals of the weights in a run.",
)
