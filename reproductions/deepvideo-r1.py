"""Difficulty-aware augmentation against Reg-GRPO without it, on questions about drawn shapes."""

from pathlib import Path

from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY, AREA
from unipo.reproduce.logs import late


def still(run: Path) -> dict[str, float]:
    """Share of groups without a signal, over the run."""
    return {"still": late(run, "groups/zero_variance", share=1.0)}


REPRODUCTION = Reproduction(
    method="deepvideo-r1",
    claim="Noise on the images of easy prompts and the beginning of a solution for hard ones leave fewer groups without "
    "a signal, and Reg-GRPO learns more with them.",
    arms={
        "deepvideo-r1": "deepvideo-r1",
        "reg-grpo": "reg-grpo",
    },
    metrics=(ACCURACY, AREA, Metric("still", "groups without a signal, mean over the run", higher=False, kind="share")),
    measure=still,
    task="shapes",
    budget="60 steps",
    train={"policy": {"model": "shapes"}, "sampling": {"max_tokens": 16}},
    search={"lr": (3e-4, 1e-3, 2e-3)},
    seeds=6,
    notes="Pictures of one frame instead of videos, a model of a quarter of a million weights. Equal optimiser steps, not "
    "tokens: the augmented arm samples every prompt twice, and solutions besides. Scales of hint and noise are "
    "reconstructed.",
)
