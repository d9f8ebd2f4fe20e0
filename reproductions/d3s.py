"""D3S against GRPO on everything that was sampled, and against a fixed selection."""

from pathlib import Path

import unipo.reproduce.tasks  # noqa: F401  (registers the task "mixture")
from unipo.compare.outcome import lines
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY, AREA


def trained(run: Path) -> dict[str, float]:
    """Tokens with a gradient over the run, as a share of those sampled."""
    metrics = lines(run, "metrics")
    return {"trained": sum(m["tokens/computed"] for m in metrics) / sum(m["tokens/sampled"] for m in metrics)}


REPRODUCTION = Reproduction(
    method="d3s",
    claim="Training on the responses with the widest advantages and their strongest tokens, few at first and more later, "
    "learns faster than GRPO on all of them.",
    arms={
        "d3s": "d3s",
        "grpo": "d3s[selection=[]]",
        "without schedule": "d3s[selection.0.last=0.25,selection.1.last=0.2]",
    },
    metrics=(AREA, ACCURACY, Metric("trained", "tokens trained on, of those sampled", higher=False)),
    measure=trained,
    task="mixture",
    budget="50 steps",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    select="area",
    notes="The budget is steps, as the schedule runs over a known number of them; every arm samples the same. Speed is the "
    "mean accuracy over the run, the paper's is steps to equal accuracy. 40 % of the prompts are always solved and 40 % "
    "never. Four groups of 16 per step, so that there is little to choose between prompts. The paper's shares are not "
    "known; ours are the method's defaults.",
)
