"""KL estimators: values, and which gradient each follows, by exact enumeration of a three-armed softmax."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import batch_of, close, tensor
from torch import Tensor

from unipo.errors import ConfigError
from unipo.parts.part import Regulariser
from unipo.parts.regulariser import ESTIMATORS, EntropyBonus, ReferenceKL, k1, k2, k3, kl_estimate
from unipo.parts.shaping import KLInReward

PI, REF = tensor([0.6, 0.3, 0.1]), tensor([0.4, 0.4, 0.2])
TRUE = [0.19068, -0.11260, -0.07808]  # d KL(pi || ref) / d logits
FORWARD = [0.2, -0.1, -0.1]  # d KL(ref || pi) / d logits = pi - ref


def in_loss(regulariser: Regulariser, pi: Tensor = PI, sampled_from: Tensor | None = None) -> Tensor:
    """Expected gradient by logits of the regulariser as a loss term, arms drawn from `sampled_from` (default pi)."""
    drawn = pi if sampled_from is None else sampled_from
    logits = pi.log().requires_grad_()
    logp = logits.log_softmax(0)
    batch = batch_of([1, 1, 1], old_logp=drawn.log(), reference_logp=REF.log())
    values = regulariser(batch.with_columns(None, logp=logp))
    (gradient,) = torch.autograd.grad((drawn * values).sum(), logits)
    return gradient


def in_reward(estimator: str) -> Tensor:
    """Expected score-function gradient of -(penalised reward): + E[k(a) grad log pi(a)]."""
    batch = batch_of([1, 1, 1], reward=[0.0] * 3, old_logp=PI.log(), reference_logp=REF.log())
    penalised = KLInReward(beta=1.0, estimator=estimator)(batch)
    score = torch.eye(3, dtype=torch.float64) - PI
    return -(PI * penalised) @ score


@pytest.mark.parametrize(
    ("name", "mean", "std"), [("k1", 0.087660, 0.4048), ("k2", 0.085757, 0.0546), ("k3", 0.087660, 0.0740)]
)
def test_mean_and_spread_of_the_estimators(name: str, mean: float, std: float) -> None:
    value = ESTIMATORS[name](PI.log() - REF.log())
    expected = (PI * value).sum()
    assert float(expected) == pytest.approx(mean, abs=1e-6)
    assert float((PI * (value - expected) ** 2).sum().sqrt()) == pytest.approx(std, abs=1e-4)


@pytest.mark.parametrize(
    ("estimator", "corrected", "expected"),
    [
        ("k1", False, [0, 0, 0]),
        ("k2", False, TRUE),
        ("k3", False, FORWARD),
        ("k3+", False, TRUE),
        ("k1", True, TRUE),
        ("k3", True, TRUE),
    ],
)
def test_the_gradient_each_form_follows_in_the_loss(estimator: str, corrected: bool, expected: list[float]) -> None:
    close(in_loss(ReferenceKL(estimator=estimator, corrected=corrected)), expected, 2e-5)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", TRUE), ("k2", [-0.0021, -0.0133, 0.0154]), ("k3", [-0.0093, -0.0126, 0.0219])],
)
def test_the_gradient_each_form_follows_in_the_reward(estimator: str, expected: list[float]) -> None:
    close(in_reward(estimator), expected, 6e-5)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_correction_is_right_off_policy_too(estimator: str) -> None:
    behaviour = tensor([0.2, 0.2, 0.6])
    close(in_loss(ReferenceKL(estimator=estimator, corrected=True), sampled_from=behaviour), TRUE, 2e-5)
    uncorrected = in_loss(ReferenceKL(estimator="k2"), sampled_from=behaviour)
    assert float((uncorrected - tensor(TRUE)).abs().max()) > 0.05


def test_the_optimum_is_stationary_only_for_the_right_forms() -> None:
    """At pi* ~ ref exp(R / beta) the reward's gradient and beta times the KL's cancel."""
    reward, beta = tensor([0.3, 0.0, -0.2]), 0.4
    best = (REF.log() + reward / beta).softmax(0)
    ascent = best * (reward - (best * reward).sum())  # exact policy gradient of E[R]
    for estimator, corrected in (("k2", False), ("k3+", False), ("k3", True), ("k1", True)):
        close(beta * in_loss(ReferenceKL(estimator=estimator, corrected=corrected), best), ascent)
    assert float((beta * in_loss(ReferenceKL(estimator="k3"), best) - ascent).abs().max()) > 0.005
    close(in_loss(ReferenceKL(estimator="k1"), best), [0, 0, 0])  # as if beta were 0


def test_estimators_are_zero_together_and_agree_to_second_order() -> None:
    d = tensor([-0.01, 0.0, 0.01])
    assert float(k2(d).min()) == 0.0
    assert float(k3(d).min()) == 0.0
    assert float((k3(d) - k2(d)).abs().max()) < 2e-7  # d^3 / 6
    wide = torch.linspace(-19, 19, 101, dtype=torch.float64)
    assert bool((k3(wide) >= 0).all())
    assert bool((k1(wide) == wide).all())


def test_differences_beyond_twenty_nats_are_clamped_and_masked_ones_never_read() -> None:
    mask = torch.tensor([True, True, False])
    logp = tensor([-100, 0, -math.inf]).requires_grad_()
    value = kl_estimate(logp, tensor([0, -100, math.nan]), mask, "k3")
    close(value, [math.expm1(20) - 20, math.expm1(-20) + 20, 0])
    (gradient,) = torch.autograd.grad(value.sum(), logp)
    assert gradient.tolist() == [0, 0, 0]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "abs"])
@pytest.mark.parametrize("corrected", [False, True])
def test_gradients_equal_finite_differences(estimator: str, corrected: bool) -> None:
    batch = batch_of([3], old_logp=[-1.0, -0.4, -2.0], reference_logp=[-1.2, -0.5, -1.0], mask=[True, True, False])
    part = ReferenceKL(estimator=estimator, corrected=corrected)
    logp = tensor([-0.9, -0.7, -1.5]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: part(batch.with_columns(None, logp=x)), logp)


def test_the_straight_through_form_has_k3s_value_and_k2s_gradient() -> None:
    d = tensor([0.7, -0.3]).requires_grad_()
    value = ESTIMATORS["k3+"](d)
    close(value, k3(d))
    close(torch.autograd.grad(value.sum(), d)[0], d)


# -- where it enters: two decisions ------------------------------------------------------------------
FIRST = tensor([0.3, -0.2])  # logits of the first token
SECOND = tensor([[1.5, -0.5], [-0.4, 0.3]])  # logits of the second, after first token 0 or 1
REF_FIRST, REF_SECOND = tensor([0.6, 0.4]).log(), tensor([[0.5, 0.5], [0.2, 0.8]]).log()


def two_steps() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(logits of step 1, probability [4], logp [8], reference logp [8]) over all four responses."""
    first = FIRST.clone().requires_grad_()
    steps, second = first.log_softmax(0), SECOND.log_softmax(1)
    pairs = [(a, b) for a in (0, 1) for b in (0, 1)]
    logp = torch.stack([x for a, b in pairs for x in (steps[a], second[a, b])])
    reference = torch.stack([x for a, b in pairs for x in (REF_FIRST[a], REF_SECOND[a, b])])
    return first, logp.detach().reshape(4, 2).sum(1).exp(), logp, reference


def test_in_the_reward_the_first_step_pays_for_the_second_and_in_the_loss_it_does_not() -> None:
    first, probability, logp, reference = two_steps()
    second = SECOND.softmax(1)
    later_kl = (second * (SECOND.log_softmax(1) - REF_SECOND)).sum(1)
    pi = first.log_softmax(0).exp()
    local = (pi * (pi.log() - REF_FIRST)).sum()
    (exact_local,) = torch.autograd.grad(local, first, retain_graph=True)
    (exact_whole,) = torch.autograd.grad(local + (pi * later_kl).sum(), first)
    assert float((exact_local - exact_whole).abs().max()) > 0.01

    batch = batch_of([2] * 4, reward=[0.0] * 4, old_logp=logp.detach(), reference_logp=reference)
    penalised = KLInReward(beta=1.0)(batch)
    surrogate = -(probability * penalised * batch.layout.seq_sum(logp)).sum()
    close(torch.autograd.grad(surrogate, first, retain_graph=True)[0], exact_whole)

    values = ReferenceKL(estimator="k2")(batch.with_columns(None, logp=logp))
    expected = (probability * batch.layout.seq_sum(values)).sum()
    close(torch.autograd.grad(expected, first)[0], exact_local)


# -- settings -----------------------------------------------------------------------------------------
def test_without_strength_nothing_is_needed() -> None:
    assert ReferenceKL(beta=0).needs == ()
    assert EntropyBonus(strength=0).needs == ()
    assert KLInReward(beta=0).needs == ("reward",)


def test_the_entropy_bonus_is_minus_the_entropy_where_it_counts() -> None:
    batch = batch_of([3], entropy=[0.5, 0.2, math.inf], mask=[True, True, False])
    assert EntropyBonus(strength=0.1)(batch).tolist() == [-0.5, -0.2, 0]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown KL estimator 'k33'; did you mean 'k3'"):
        ReferenceKL(estimator="k33")
    with pytest.raises(ConfigError, match="must not be negative, got -1"):
        ReferenceKL(beta=-1)
    with pytest.raises(ConfigError, match="must not be negative, got -1"):
        KLInReward(beta=-1)
