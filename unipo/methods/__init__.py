"""The catalogue. Importing this package registers every method; order here is the order of `unipo methods`."""

from unipo.methods import (  # noqa: F401  isort: skip
    supervised,
    reinforce,
    grpo,
    sequence,
    weights,
    evidence,
    preference,
    tapered,
    contrastive,
    covariance,
    discriminative,
    regression,
    control_token,
    mismatch,
    asynchronous,
    one_token,
)
