"""REINFORCE++ against GRPO: what is learned from few prompts, on others."""

from unipo.reproduce import Reproduction

REPRODUCTION = Reproduction(
    method="reinforce++",
    claim="Normalising advantages over the batch instead of each prompt's group over-fits less to a small set of "
    "prompts: held-out accuracy is higher.",
    arms={"reinforce++": "reinforce++[advantage.beta=0]", "grpo": "grpo-token"},
    task="scratchpad?size=64",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="64 training prompts; the paper trains on small sets of mathematics. One response to each prompt per step against "
    "groups of 8, 64 responses per step for both. Both have the same clip and mean over all tokens and no KL, which acts on "
    "over-fitting by itself, so that only the advantage and the groups differ. Both are meant: a batch's statistics need no "
    "second response to a prompt, a group's do.",
)
