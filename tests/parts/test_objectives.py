"""Policy-gradient objectives: numbers by hand, gradients three ways, and the limits in which they coincide."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import batch_of, central_differences, close, live, singles, tensor, value_and_gradient
from hypothesis import given, settings
from hypothesis import strategies as st

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.parts.average import SequenceMean, SequenceSum, TokenMean
from unipo.parts.objective import (
    Clipped,
    ClippedWeight,
    ScoreFunction,
    SequenceClipped,
    SequenceClippedToken,
)
from unipo.parts.part import Objective

EVERY = [
    ScoreFunction(),
    Clipped(),
    Clipped(dual=1.5),
    ClippedWeight(floor=0.8, cap=1.3),
    SequenceClipped(low=0.1, high=0.2),
    SequenceClipped(low=0.2, high=0.2, geometric=False),
    SequenceClippedToken(low=0.1, high=0.2),
]


# -- numbers by hand ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("objective", "ratio", "advantage", "loss", "gradient"),
    [
        # d(-rho A)/d log pi = -rho A where the surrogate is not clipped, 0 where it is
        (Clipped(0.2, 0.2), 1.25, 1, -1.2, 0),
        (Clipped(0.2, 0.28), 1.25, 1, -1.25, -1.25),
        (Clipped(0.2, 0.2), 0.75, -1, 0.8, 0),
        (Clipped(0.2, 0.28), 0.75, -1, 0.8, 0),
        (Clipped(0.2, 0.2), 0.75, 1, -0.75, -0.75),  # the pessimistic side stays alive
        (Clipped(0.2, 0.2), 4.0, -1, 4.0, 4.0),
        (Clipped(0.2, 0.2, dual=3.0), 4.0, -1, 3.0, 0),
        (Clipped(0.2, 0.2, dual=3.0), 2.0, -1, 2.0, 2.0),
        (Clipped(0.2, 0.2, dual=3.0), 4.0, 1, -1.2, 0),  # dual clip is for negative advantages only
        (Clipped(0.2, 0.2), 1.0, 2, -2.0, -2.0),
        # capped weight: -w A log pi with log pi = -1 + log 3, gradient -w A
        (ClippedWeight(0.8, 1.28), 3.0, 1, -1.28 * (math.log(3) - 1), -1.28),
        (ClippedWeight(0.8, 1.28), 3.0, -1, 1.28 * (math.log(3) - 1), 1.28),
        (ClippedWeight(0.8, 1.28), 0.5, 1, -0.8 * (math.log(0.5) - 1), -0.8),
        (ClippedWeight(0.0, 5.0), 0.5, 1, -0.5 * (math.log(0.5) - 1), -0.5),
        (ScoreFunction(), 1.0, 2, 2.0, -2.0),
    ],
)
def test_one_token_by_hand(objective: Objective, ratio: float, advantage: float, loss: float, gradient: float) -> None:
    got, slope = value_and_gradient(objective, singles([ratio], [advantage]))
    close(got, [loss])
    close(slope, [gradient])


def test_a_drifted_bad_token_moves_ppo_by_three_and_cispo_by_its_cap() -> None:
    batch = singles([3.0], [-1])
    assert float(value_and_gradient(Clipped(0.2, 0.28), batch)[1]) == pytest.approx(3)
    assert float(value_and_gradient(ClippedWeight(0.8, 1.28), batch)[1]) == pytest.approx(1.28)


def four_tokens(advantage: float) -> Batch:
    old = tensor([-1, -2, -0.5, -0.1])
    return batch_of([4], logp=old + tensor([0.1, 0.0, -0.04, 0.02]), old_logp=old, advantage=[advantage] * 4)


def test_the_sequence_ratio_is_the_geometric_mean() -> None:
    """Log-ratios 0.1, 0, -0.04, 0.02: mean 0.02, s = exp(0.02) = 1.020201; the product is exp(0.08) = 1.083287."""
    mean, product = (SequenceClipped(low=1, high=9, geometric=g) for g in (True, False))
    assert mean(four_tokens(-1.0)).item() == pytest.approx(1.020201, abs=1e-6)
    assert product(four_tokens(-1.0)).item() == pytest.approx(1.083287, abs=1e-6)


def test_a_sequence_is_clipped_whole_or_alive_whole() -> None:
    gspo = SequenceClipped(low=3e-4, high=4e-4)
    loss, gradient = value_and_gradient(gspo, four_tokens(1.0))
    close(loss, [-1.0004])
    assert gradient.tolist() == [0] * 4
    loss, gradient = value_and_gradient(gspo, four_tokens(-1.0))
    close(loss, [math.exp(0.02)])
    close(gradient, [math.exp(0.02) / 4] * 4)  # s |A| / T for every token


def test_the_order_of_log_ratios_inside_a_response_does_not_matter() -> None:
    batch = four_tokens(-1.0)
    order = torch.tensor([2, 0, 3, 1])
    turned = live(batch.with_columns(None, old_logp=batch.old_logp[order]), batch.logp[order])
    close(SequenceClipped()(turned), SequenceClipped()(batch))


def test_an_empty_response_has_ratio_one_and_no_gradient() -> None:
    batch = batch_of([0, 1], logp=[-1.0], old_logp=[-1.0], advantage=[1.0])
    assert SequenceClipped()(batch).tolist() == [0, -1]


# -- gradients ----------------------------------------------------------------------------------------
def wild(seed: int, spread: float = 0.3) -> Batch:
    """Ragged responses, one empty, one token uncounted, ratios on both sides of every clip."""
    draw = torch.Generator().manual_seed(seed)
    lengths = [3, 1, 0, 4, 2]
    old = -torch.rand(10, generator=draw, dtype=torch.float64) * 3 - 0.05
    per_response = torch.randn(5, generator=draw, dtype=torch.float64)
    mask = torch.ones(10, dtype=torch.bool)
    mask[5] = False
    advantage = per_response.repeat_interleave(torch.tensor(lengths))
    return batch_of(
        lengths,
        [2, 3],
        logp=old + spread * torch.randn(10, generator=draw, dtype=torch.float64),
        old_logp=old,
        advantage=torch.where(mask, advantage, 0.0),
        mask=mask,
    )


@pytest.mark.parametrize("objective", EVERY, ids=repr)
@pytest.mark.parametrize("seed", range(4))
def test_pieces_give_autograds_gradient(objective: Objective, seed: int) -> None:
    batch = wild(seed)
    _, gradient = value_and_gradient(objective, batch)
    close(objective.pieces(batch).gradient, gradient)


@given(
    st.lists(st.tuples(st.floats(-60, 60, allow_nan=False), st.floats(-3, 3, allow_nan=False)), min_size=1, max_size=6)
)
@settings(max_examples=60, deadline=None)
def test_pieces_give_autograds_gradient_however_far_the_policy_drifts(rows: list[tuple[float, float]]) -> None:
    """Beyond +-20 the log-ratio is clamped and passes no gradient; the pieces must say so too."""
    logp = tensor([r[0] for r in rows])
    batch = batch_of(
        [len(rows) - len(rows) // 2, len(rows) // 2], logp=logp, old_logp=logp * 0, advantage=[r[1] for r in rows]
    )
    for objective in EVERY[1:]:
        _, gradient = value_and_gradient(objective, batch)
        claimed = objective.pieces(batch).gradient
        torch.testing.assert_close(claimed, gradient, rtol=1e-9, atol=1e-9, msg=lambda m, o=objective: f"{o}: {m}")


@pytest.mark.parametrize("objective", [*EVERY[:3], EVERY[4], EVERY[5]], ids=repr)
def test_gradients_equal_finite_differences(objective: Objective) -> None:
    for seed in range(3):
        batch = wild(seed)
        assert torch.autograd.gradcheck(
            lambda logp, b=batch: objective(b.with_columns(None, logp=logp)), batch.logp.detach().requires_grad_()
        )


def test_cispo_has_no_gradient_through_its_weight() -> None:
    """Finite differences of -w A log pi with w frozen where it is."""
    objective, batch = ClippedWeight(floor=0.8, cap=1.3), wild(1)
    weight = (batch.logp - batch.old_logp).exp().clamp(0.8, 1.3).detach()

    def frozen(logp: torch.Tensor) -> torch.Tensor:
        return -(weight * batch.advantage * logp)[batch.mask].sum()

    close(value_and_gradient(objective, batch)[1], central_differences(frozen, batch.logp.detach()), 1e-7)


def test_gspo_token_has_no_gradient_through_the_other_tokens() -> None:
    """Finite differences of s pi_t / pi_t' with s and pi_t' frozen."""
    objective, batch = SequenceClippedToken(low=0.1, high=0.2), wild(2)
    start = batch.logp.detach()
    mean = batch.layout.seq_mean(start - batch.old_logp, batch.mask)
    s_t = batch.layout.to_tokens(mean.exp())

    def frozen(logp: torch.Tensor) -> torch.Tensor:
        ratio = s_t * (logp - start).exp()
        loss = -torch.minimum(ratio * batch.advantage, ratio.clamp(0.9, 1.2) * batch.advantage)
        return loss[batch.mask].sum()

    close(value_and_gradient(objective, batch)[1], central_differences(frozen, start), 1e-7)


@pytest.mark.parametrize("objective", EVERY, ids=repr)
def test_active_is_a_superset_of_the_gradient(objective: Objective) -> None:
    for seed in range(4):
        batch = wild(seed)
        batch = batch.with_columns(None, advantage=batch.advantage * (batch.layout.token_seq != 3))
        _, gradient = value_and_gradient(objective, batch)
        assert not bool(((gradient != 0) & ~objective.active(batch)).any())
        assert not bool(objective.active(batch)[batch.layout.token_seq == 3].any())


# -- limits -------------------------------------------------------------------------------------------
def same(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> None:
    close(a[0].sum(), b[0].sum())
    close(a[1], b[1])


def test_gspo_equals_grpo_at_length_one() -> None:
    batch = singles([0.5, 0.9, 1.0, 1.1, 1.7], [1, -1, 2, 1, -1])
    for geometric in (True, False):
        whole = SequenceClipped(0.2, 0.2, geometric)
        same(value_and_gradient(whole, batch, SequenceMean()), value_and_gradient(Clipped(), batch, SequenceMean()))


@pytest.mark.parametrize("seed", range(3))
def test_on_policy_gspo_has_grpos_gradient(seed: int) -> None:
    batch = wild(seed, spread=0)
    gspo = value_and_gradient(SequenceClipped(), batch, SequenceMean())[1]
    close(gspo, value_and_gradient(Clipped(), batch, SequenceMean())[1])


@pytest.mark.parametrize("seed", range(3))
def test_on_policy_the_product_ratio_has_the_gradient_of_reinforce_over_sequences(seed: int) -> None:
    batch = wild(seed, spread=0)
    rloo = value_and_gradient(SequenceClipped(0.2, 0.2, geometric=False), batch, SequenceMean())[1]
    close(rloo, value_and_gradient(ScoreFunction(), batch, SequenceSum())[1])


@pytest.mark.parametrize("seed", range(5))
def test_gspo_token_equals_gspo_for_a_constant_advantage(seed: int) -> None:
    batch = wild(seed)
    whole = SequenceClipped(low=0.1, high=0.2)
    token = SequenceClippedToken(low=0.1, high=0.2)
    a = (whole(batch) * SequenceMean().weights(batch, "sequence")).sum()
    b = (token(batch) * SequenceMean().weights(batch)).sum()
    close(a, b)
    close(torch.autograd.grad(a, batch.logp)[0], torch.autograd.grad(b, batch.logp)[0])


@pytest.mark.parametrize("seed", range(3))
def test_on_policy_cispo_reinforce_and_ppo_have_one_gradient(seed: int) -> None:
    batch = wild(seed, spread=0)
    reinforce = value_and_gradient(ScoreFunction(), batch, TokenMean())[1]
    for objective in (Clipped(), Clipped(dual=3.0), ClippedWeight()):
        close(value_and_gradient(objective, batch, TokenMean())[1], reinforce)


def test_inside_the_clip_range_cispo_has_ppos_gradient() -> None:
    batch = singles([0.85, 0.95, 1.05, 1.15], [1, -1, -2, 1])
    ppo = value_and_gradient(Clipped(), batch)[1]
    close(value_and_gradient(ClippedWeight(0.8, 1.2), batch)[1], ppo)


def test_dual_clip_without_a_reachable_bound_is_ppo() -> None:
    same(value_and_gradient(Clipped(dual=1e9), wild(0)), value_and_gradient(Clipped(), wild(0)))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Clipped: the clip range needs 0 <= low <= 1"):
        Clipped(low=-0.1)
    with pytest.raises(ConfigError, match=r"dual must be greater than 1 .*got 0\.5"):
        Clipped(dual=0.5)
    with pytest.raises(ConfigError, match=r"floor <= cap"):
        ClippedWeight(floor=2, cap=1)
    with pytest.raises(ConfigError, match=r"SequenceClipped: the clip range"):
        SequenceClipped(high=-1)
