"""DAPO against GRPO where most prompts teach nothing."""

import unipo.reproduce.tasks  # noqa: F401  (registers the task "mixture")
from unipo.reproduce import Reproduction
from unipo.reproduce.claim import ACCURACY, AREA

REPRODUCTION = Reproduction(
    method="dapo",
    claim="With clip-higher, dynamic sampling, the token-level loss and overlong shaping, GRPO learns more.",
    arms={"dapo": "dapo", "grpo": "grpo", "dapo without dynamic sampling": "dapo[selection=[]]"},
    metrics=(ACCURACY, AREA),
    task="mixture",
    budget="150000 tokens",
    search={"lr": (2e-4, 4e-4)},
    notes="40 % of the prompts are always solved and 40 % never, so that most groups carry no signal. The budget counts "
    "every sampled token, also of prompts that dynamic sampling drops; the paper counts steps.",
)
