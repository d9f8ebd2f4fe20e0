"""The catalogue. Importing this package registers every method; order here is the order of `unipo methods`."""

from unipo.methods import (  # noqa: F401  isort: skip
    supervised,
    reinforce,
    grpo,
    sequence,
    weights,
    evidence,
    perception,
    group_weight,
    risk,
    semantic,
    position,
    behaviour,
    shaped,
    prompts,
    improvement,
    hybrid,
    distillation,
    preference,
    actor_critic,
    segment,
)
