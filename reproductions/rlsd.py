"""RLSD against GRPO."""

from unipo.reproduce import Reproduction

REPRODUCTION = Reproduction(
    method="rlsd",
    claim="Rescaling each token's advantage by how much likelier it is when the right answer is shown learns more than "
    "GRPO.",
    arms={"rlsd": "rlsd", "grpo": "rlsd[credit=[]]"},
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="GRPO is RLSD without its credit. The extra pass per batch is not counted in the budget of sampled tokens.",
)
