"""Training on prompts that are solved about half of the time, against all prompts and those of mixed outcome."""

import unipo.reproduce.tasks  # noqa: F401  (registers the task "mixture")
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY, AREA

REPRODUCTION = Reproduction(
    method="online-difficulty-filtering",
    claim="Keeping only prompts that the current policy solves 30 to 70 % of the time, and sampling on until the batch is "
    "full, learns more per update than training on all prompts.",
    arms={
        "band": "online-difficulty-filtering",
        "grpo": "online-difficulty-filtering[selection=[]]",
        "mixed outcomes": "online-difficulty-filtering[selection.0.low=0,selection.0.high=1]",
    },
    metrics=(ACCURACY, AREA, Metric("tokens", "tokens sampled", higher=False, kind="number")),
    task="mixture?solved=0.25&impossible=0.25",
    budget="30 steps",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="The budget is steps, which all train on 64 responses: the paper's batches are of one size too. The tokens that "
    "filtering samples in vain are the third metric; at equal tokens the plain arm would take several times as many "
    "steps. A quarter of the prompts is always solved and a quarter never.",
)
