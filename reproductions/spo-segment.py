"""SPO-chain against GRPO at an equal number of updates."""

from unipo.reproduce import Reproduction

REPRODUCTION = Reproduction(
    method="spo-segment",
    claim="Valuing each cut of a response by sampling on from it, and crediting segments by the rise, learns more than "
    "one advantage per response.",
    arms={
        "spo-chain": "spo-segment[advantage.interval=1,advantage.continuations=4]",
        "grpo": "spo-segment[advantage=GroupNormalised(),selection=[]]",
        "grpo on unsure tokens": "spo-segment[advantage=GroupNormalised()]",
    },
    budget="30 steps",
    responses=32,
    seeds=6,
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="Equal steps of 32 responses, as in the paper's comparison of updates: SPO samples half as many tokens "
    "again as the others for its values (37,266 a run against 24,780). Responses here have some 26 tokens and few unsure "
    "ones, so every unsure token is a cut (the paper: each fifth), with 4 continuations (the paper: 9, or 4 for long "
    "reasoning). GRPO is SPO without its credit and without its mask, with two epochs and the small KL term too. No tree.",
)
