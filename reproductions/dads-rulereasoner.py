"""Domains drawn by how far they are below the target, against a uniform mixture: what becomes of the weakest?"""

from collections import defaultdict
from pathlib import Path

from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.reproduce.weights import sampled_scores
from unipo.tasks.registry import resolve_task

TASK = 'scratchpad?kinds=["mod","chain","sort","reverse"]'


def weakest(run: Path) -> dict[str, float]:
    """Held-out accuracy of the trained model in its worst domain, two responses to each of 512 problems."""
    scores = sampled_scores(run, TASK, prompts=512, samples=2)
    domains = defaultdict(list)
    for example, marks in zip(resolve_task(TASK).heldout, scores, strict=False):
        domains[example.row["kind"]] += marks
    return {"weakest": min(sum(marks) / len(marks) for marks in domains.values())}


REPRODUCTION = Reproduction(
    method="dads-rulereasoner",
    claim="Drawing more prompts from the domains whose mean reward is furthest below the target ends with a better weakest "
    "domain than a uniform mixture, at no cost to the mean.",
    arms={
        "dads": "dads-rulereasoner[source.group_size=8]",
        "uniform": "dads-rulereasoner[source.group_size=8,curriculum.target=0]",
    },
    metrics=(Metric("weakest", "held-out accuracy in the weakest domain"), ACCURACY),
    measure=weakest,
    task=TASK,
    budget="80000 tokens",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="Four domains of 40 to 69 % at the start, 8 prompts of 8 responses per step; the paper has eight of rules and "
    "64 prompts of 64 responses. Both arms draw by domain, the second with a target of 0, which none is below, so that only "
    "the weights differ. About seven renewals of the weights in a run.",
)
