"""Small batches written out by hand, and gradients of what is computed on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.layout import Layout
from unipo.parts.average import Average
from unipo.parts.part import Objective

DOUBLE = torch.float64


def tensor(values: Sequence[float] | Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=DOUBLE)


def batch_of(lengths: Sequence[int], sizes: Sequence[int] | None = None, **columns: Any) -> Batch:
    """A batch in which everything is trainable, scored and counted unless a column says otherwise.

    Lists of numbers become float64 tensors, lists of bools bool tensors; `logp` gets a gradient.
    """
    layout = Layout.of(list(lengths), sizes)
    n, tokens = layout.n_sequences, layout.n_tokens
    given: dict[str, Any] = {
        "tokens": torch.zeros(tokens, dtype=torch.int64),
        "context": torch.zeros(layout.n_context, dtype=torch.int64),
        "trainable": torch.ones(tokens, dtype=torch.bool),
        "scored": torch.ones(n, dtype=torch.bool),
        "mask": torch.ones(tokens, dtype=torch.bool),
    }
    for name, value in columns.items():
        is_numbers = isinstance(value, (list, tuple)) and all(isinstance(x, (int, float)) for x in value)
        if is_numbers and not all(isinstance(x, bool) for x in value):
            given[name] = tensor(value)
        elif is_numbers:
            given[name] = torch.tensor(value, dtype=torch.bool)
        else:
            given[name] = value
    batch = Batch.of(layout, **given)
    return live(batch, batch.logp) if batch.has("logp") else batch


def live(batch: Batch, logp: Tensor) -> Batch:
    return batch.with_columns(None, logp=logp.detach().clone().requires_grad_())


def singles(ratio: Sequence[float], advantage: Sequence[float], **columns: Any) -> Batch:
    """Responses of one token each, with these ratios pi / pi_old and advantages."""
    old = -torch.ones(len(ratio), dtype=DOUBLE)
    return batch_of(
        [1] * len(ratio), logp=old + tensor(ratio).log(), old_logp=old, advantage=list(map(float, advantage)), **columns
    )


def value_and_gradient(objective: Objective, batch: Batch, average: Average | None = None) -> tuple[Tensor, Tensor]:
    """([units] loss values, [T] gradient by logp of their sum, or of their average)."""
    values = objective(batch)
    weight = 1.0 if average is None else average.weights(batch, objective.level)
    (gradient,) = torch.autograd.grad((values * weight).sum(), batch.logp)
    return values.detach(), gradient


def central_differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    """Gradient of a scalar function by central differences."""
    rows = []
    for i in range(len(at)):
        push = torch.zeros_like(at)
        push[i] = step
        rows.append((function(at + push) - function(at - push)) / (2 * step))
    return torch.stack(rows)


def close(got: Tensor, expected: Sequence[float] | Tensor, digits: float = 1e-9) -> None:
    torch.testing.assert_close(got.detach().to(DOUBLE), tensor(expected), rtol=digits, atol=digits)
