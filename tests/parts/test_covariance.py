"""Clip-Cov and KL-Cov: which tokens, and what happens to them."""

from __future__ import annotations

import pytest
import torch
from by_hand import DOUBLE, batch_of, close, tensor, value_and_gradient
from torch import Tensor

from unipo.batch import Batch
from unipo.check import check_objective
from unipo.errors import ConfigError
from unipo.judge import with_prepared
from unipo.parts.covariance import ClipCov, CovarianceKL, ImportanceWeighted, share_of, token_covariance
from unipo.parts.objective import Clipped

ADVANTAGE = [1.0, 1.0, -1.0, -1.0]
PROBABILITY = [0.9, 0.1, 0.5, 0.05]
COVARIANCE = [1.4188, -0.7784, -0.8311, 1.4715]


def four(ratio: float = 1.0, **columns: object) -> Batch:
    """Four one-token responses; the current policy is `ratio` times the old one."""
    now = tensor(PROBABILITY).log()
    given = {
        "logp": now,
        "current_logp": now,
        "old_logp": now - torch.tensor(ratio, dtype=DOUBLE).log(),
        "advantage": ADVANTAGE,
        "sample_id": torch.arange(4),
    }
    return batch_of([1] * 4, **(given | columns))


def test_scores_by_hand() -> None:
    """A rare bad token scores as high as a sure good one."""
    score = token_covariance(tensor(ADVANTAGE), tensor(PROBABILITY).log(), torch.ones(4, dtype=torch.bool))
    close(score, COVARIANCE, 1e-4)


def test_masked_tokens_are_outside_of_the_means() -> None:
    mask = torch.tensor([True, True, True, True, False])
    score = token_covariance(tensor([*ADVANTAGE, 50.0]), tensor([*PROBABILITY, 0.0]).log(), mask)
    close(score, [*COVARIANCE, 0.0], 1e-4)


@pytest.mark.parametrize(("scale", "exact", "formula"), [("natural", -0.0046190, -0.0046168), ("plain", -0.0013071, -0.0013064)])  # fmt: skip
def test_the_entropy_changes_by_minus_the_covariance(scale: str, exact: float, formula: float) -> None:
    # pi = (0.7, 0.2, 0.1), A = (1, 0, -1), step 0.01 on the logits
    p, a, eta = tensor([0.7, 0.2, 0.1]), tensor([1.0, 0.0, -1.0]), 0.01
    push = a if scale == "natural" else p * (a - (p * a).sum())

    def entropy(q: Tensor) -> Tensor:
        return -(q * q.log()).sum()

    change = entropy((p.log() + eta * push).softmax(0)) - entropy(p)
    logp = p.log()
    covariance = (p * logp * push).sum() - (p * logp).sum() * (p * push).sum()
    close(change, tensor(exact), 1e-7)
    close(-eta * covariance, tensor(formula), 1e-7)


@pytest.mark.parametrize(("count", "share", "taken"), [(1000, 2e-3, 2), (10, 2e-4, 1), (1999, 1e-3, 1), (3, 1.0, 3), (0, 0.1, 0)])  # fmt: skip
def test_at_least_one_token_is_taken(count: int, share: float, taken: int) -> None:
    assert share_of(count, share) == taken


# -- Clip-Cov --------------------------------------------------------------------------------------------------
def test_candidates_lie_between_the_bounds_and_dropped_ones_get_no_gradient() -> None:
    part = ClipCov(share=1.0)
    batch = with_prepared(part, four(ratio=1.1))
    assert batch.covariance_dropped.tolist() == [True, False, False, True]
    value, gradient = value_and_gradient(part, batch)
    close(value, [0.0, -1.1, 1.1, 0.0])
    close(gradient, [0.0, -1.1, 1.1, 0.0])
    assert part.active(batch).tolist() == [False, True, True, False]


def test_one_of_two_candidates_is_drawn_by_response_and_step() -> None:
    part, seen = ClipCov(share=1e-4), set()
    for step in range(1, 40):
        batch = Batch(four().layout, four().columns, four().levels, step=step)
        dropped = part.prepare(batch)["covariance_dropped"]
        assert torch.equal(dropped, part.prepare(batch)["covariance_dropped"])
        assert int(dropped.sum()) == 1
        seen.add(int(dropped.nonzero()))
    assert seen == {0, 3}


def test_nothing_is_dropped_without_a_candidate() -> None:
    part = ClipCov(share=1.0, above=2.0)
    batch = with_prepared(part, four(ratio=1.1))
    assert not bool(batch.covariance_dropped.any())
    close(value_and_gradient(part, batch)[1], value_and_gradient(Clipped(1.0, 1.0), batch)[1])


def test_what_the_clip_has_cut_is_no_candidate() -> None:
    # ratio 1.3 is beyond 1 + 0.2 for the good tokens; the bad ones keep their gradient
    part = ClipCov(low=0.2, high=0.2, share=1.0)
    assert part.prepare(four(ratio=1.3))["covariance_dropped"].tolist() == [False, False, False, True]


# -- KL-Cov ----------------------------------------------------------------------------------------------------
def test_the_highest_are_penalised_by_the_absolute_log_ratio() -> None:
    part = CovarianceKL(beta=1.0, share=0.5)
    batch = with_prepared(part, four(old_logp=tensor(PROBABILITY).log() + tensor([0.2, 0.3, 0.1, -0.4])))
    assert batch.covariance_selected.tolist() == [True, False, False, True]
    value, gradient = value_and_gradient(part, batch)
    close(value, [0.2, 0.0, 0.0, 0.4])
    close(gradient, [-1.0, 0.0, 0.0, 1.0])


def test_at_the_first_update_the_penalty_has_no_gradient() -> None:
    part = CovarianceKL(share=1.0)
    value, gradient = value_and_gradient(part, with_prepared(part, four()))
    close(value, [0.0] * 4)
    close(gradient, [0.0] * 4)


def test_without_clip_the_loss_does_not_bend() -> None:
    value, gradient = value_and_gradient(ImportanceWeighted(), four(ratio=7.0))
    close(value, [-7.0, -7.0, 7.0, 7.0])
    close(gradient, [-7.0, -7.0, 7.0, 7.0])


@pytest.mark.parametrize(
    "part", [ClipCov(share=0.2, above=0.0), ClipCov(0.2, 0.2, share=1.0, above=-9.0), CovarianceKL(share=0.2), ImportanceWeighted()]
)  # fmt: skip
def test_the_objectives_pass_the_checker(part: Clipped) -> None:
    assert check_objective(part).passed


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="share of the counted tokens"):
        ClipCov(share=0.0)
    with pytest.raises(ConfigError, match="share of the counted tokens"):
        CovarianceKL(share=1.5)
    with pytest.raises(ConfigError, match="above < below"):
        ClipCov(above=5.0, below=1.0)
    with pytest.raises(ConfigError, match="must not be negative"):
        CovarianceKL(beta=-1.0)
