"""Surrogates without pessimism, by hand."""

from __future__ import annotations

import pytest
import torch

from unipo import check_objective
from unipo.errors import ConfigError
from unipo.parts.objective import Clipped, clipped_surrogate
from unipo.parts.surrogate import CappedSurrogate, capped_surrogate


def test_the_cap_binds_whatever_the_sign_of_the_advantage() -> None:
    ratio = torch.tensor([0.5, 1.0, 1.5, 0.5, 1.0, 1.5], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([1.0, 1.0, 1.0, -2.0, -2.0, -2.0], dtype=torch.float64)
    value = capped_surrogate(ratio, advantage, 1.2)
    torch.testing.assert_close(value.detach(), torch.tensor([-0.5, -1, -1.2, 1, 2, 2.4], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(value.sum(), ratio)
    assert gradient.tolist() == [-1, -1, 0, 2, 2, 0]
    # The pessimistic surrogate keeps the last gradient and drops the fourth.
    assert torch.autograd.grad(clipped_surrogate(ratio, advantage, 0.2, 0.2).sum(), ratio)[0].tolist() == [
        -1,
        -1,
        0,
        0,
        2,
        2,
    ]


def test_without_a_cap_it_is_the_plain_importance_weight() -> None:
    ratio = torch.tensor([0.1, 1.0, 9.0], dtype=torch.float64)
    advantage = torch.tensor([2.0, -1.0, 3.0], dtype=torch.float64)
    assert torch.equal(capped_surrogate(ratio, advantage, None), -ratio * advantage)
    # A clip range that never binds gives the same.
    torch.testing.assert_close(clipped_surrogate(ratio, advantage, 1.0, 1e9), -ratio * advantage)


@pytest.mark.parametrize("part", [CappedSurrogate(), CappedSurrogate(cap=1.2)])
def test_it_keeps_what_every_objective_keeps(part: CappedSurrogate) -> None:
    assert check_objective(part).passed
    assert part.formula() != Clipped().formula()


def test_a_cap_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="absolute bound on the ratio"):
        CappedSurrogate(cap=0.0)
