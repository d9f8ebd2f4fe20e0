"""Asynchronous training: samples a few versions old, clipped against the policy before the update."""

import math

from unipo.method import Paper
from unipo.methods.grpo import grpo_token
from unipo.parts.asynchronous import Asynchronous
from unipo.parts.mismatch import MismatchGate, MismatchWeight
from unipo.registry import register

async_decoupled_ppo = register(
    grpo_token.but(
        name="async-decoupled-ppo",
        paper=Paper(
            "AReaL: A Large-Scale Asynchronous Reinforcement Learning System for Language Reasoning",
            "2505.24298",
            "inclusionAI/AReaL",
        ),
        summary="GRPO on batches several updates old: clipped against the newest policy, weighed against the oldest.",
        source=Asynchronous(group_size=8, staleness=4),
        credit=(MismatchGate(level="token", high=5.0), MismatchWeight(level="token", cap=math.inf)),
        aliases=("areal", "decoupled-ppo"),
        notes=(
            "Three policies: mu wrote the token, pi_old is the policy before this batch (one pass without gradient), pi "
            "is trained.  L = w PPO(pi/pi_old, A), w = pi_old/mu constant; tokens with w > 5 are dropped and counted.",
            "Batches are sampled ahead as the paper's admission rule allows; in one process, so nothing overlaps in time. "
            "A batch of a finished run that still waits is not trained on.",
            "old_logp=behaviour makes it plain PPO on old samples, which clips them for being old.",
            "objective=LogLinearDecoupled(), credit=() interpolates pi_old instead of computing it.",
            "A run's last lag batches are sampled in vain; the first ones are younger than the bound.",
        ),
        doubts=(
            "The staleness of the paper's tasks (4 for mathematics, 8 for code) is recalled.",
            "Interrupting a response to go on with new weights is not built: a response has one version here.",
        ),
        limits=(
            "One more pass over every batch, for the policy before the update.",
            "The older the samples, the more the weights vary and the more tokens are dropped at 5.",
        ),
    )
)
