"""DAPO against GRPO where most prompts teach nothing."""

import unipo.reproduce.tasks  # noqa: F401  (registers the task "mixture")
from unipo.reproduce import Reproduction
from unipo.reproduce.claim import ACCURACY, AREA

REPRODUCTION = Reproduction(
    method="dapo",
    claim="With clip-higher, dynamic sampling, the token-level loss and overlong shaping, GRPO learns more.",
    arms={
        "dapo": "dapo[source.minibatches=4]",
        "grpo": "grpo[source.minibatches=4,source.group_size=16,advantage.eps=1e-6,regularisers=[]]",
        "dapo without dynamic sampling": "dapo[source.minibatches=4,selection=[]]",
    },
    metrics=(ACCURACY, AREA),
    task="mixture",
    budget="150000 tokens",
    train={"sampling": {"max_tokens": 32}},
    search={"lr": (5e-5, 1e-4, 2e-4)},
    notes="Only the four changes of the claim differ between the first two arms: the baseline has DAPO's groups of 16, and "
    "no KL term, with which mini-batches without any signal would still take a step. The third arm has three of the four. "
    "40 % of the prompts are always solved and 40 % never, so that most groups carry no signal. The budget counts every "
    "sampled token, also of prompts that dynamic sampling drops; the paper counts steps. Four updates per batch (the paper's "
    "sixteen would be of less than a prompt), so that the clip acts. 32 tokens at most: the penalty begins at 26, which the "
    "longest answers reach. Answers to one prompt are about equally long here, so the token-level mean can only weigh prompts.",
)
