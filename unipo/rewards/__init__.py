"""Rewards: text in, number out.

A reward is called with samples (`unipo.tasks.task.Sample`) and returns `Scores`, one entry each.  Cheap ones
(exact, numbers, format, lengths) run in the trainer's process; maths and functions of the user run in worker
processes that are killed when they hang.  Importing this package imports neither torch nor sympy.
"""

from __future__ import annotations

from unipo.rewards.check import CheckReport, check_reward
from unipo.rewards.choices import Choices
from unipo.rewards.combine import Gate, WeightedSum
from unipo.rewards.exact import ExactMatch
from unipo.rewards.exploration import AdaptiveExploration
from unipo.rewards.format import Format, r1_format, tag_count, think_format
from unipo.rewards.function import FunctionReward, load_function
from unipo.rewards.isolation import WorkerPool, close_pools
from unipo.rewards.length import (
    Cosine,
    KimiLength,
    Repetition,
    SoftOverlong,
    cosine,
    kimi_length,
    repetition,
    soft_overlong,
)
from unipo.rewards.maths import Maths
from unipo.rewards.numbers import NumberMatch, find_number
from unipo.rewards.policy import Failure, Outcome
from unipo.rewards.registry import BUILTIN, RewardSpec, resolve_reward, with_failure_policy
from unipo.rewards.thinking import final_text
from unipo.rewards.unlabelled import Unlabelled
from unipo.tasks.task import Reward, Sample, Scores

__all__ = [
    "BUILTIN",
    "AdaptiveExploration",
    "CheckReport",
    "Choices",
    "Cosine",
    "ExactMatch",
    "Failure",
    "Format",
    "FunctionReward",
    "Gate",
    "KimiLength",
    "Maths",
    "NumberMatch",
    "Outcome",
    "Repetition",
    "Reward",
    "RewardSpec",
    "Sample",
    "Scores",
    "SoftOverlong",
    "Unlabelled",
    "WeightedSum",
    "WorkerPool",
    "check_reward",
    "close_pools",
    "cosine",
    "final_text",
    "find_number",
    "kimi_length",
    "load_function",
    "r1_format",
    "repetition",
    "resolve_reward",
    "soft_overlong",
    "tag_count",
    "think_format",
    "with_failure_policy",
]
