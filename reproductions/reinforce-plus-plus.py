"""REINFORCE++ against GRPO: what is learned from few prompts, on others."""

from unipo.reproduce import Reproduction

REPRODUCTION = Reproduction(
    method="reinforce++",
    claim="Normalising advantages over the batch instead of each prompt's group over-fits less to a small set of "
    "prompts: held-out accuracy is higher.",
    arms={"reinforce++": "reinforce++", "grpo": "grpo"},
    task="scratchpad?size=32",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="32 training prompts; the paper trains on small sets of mathematics. One response per prompt and step against "
    "groups of 8, 64 responses per step for both. The arms are the methods as they are, and differ in more than the "
    "baseline: REINFORCE++ has its KL in the return (0.01) and a mean over all tokens, GRPO has its KL in the loss (0.04) "
    "and a mean over each response's.",
)
