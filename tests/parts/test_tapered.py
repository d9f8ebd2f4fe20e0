"""TOPR: bounded off-policy REINFORCE."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import batch_of, close, live, tensor, value_and_gradient

from unipo.check import check_advantage, check_objective
from unipo.errors import ConfigError
from unipo.parts.average import SequenceMean
from unipo.parts.objective import ScoreFunction
from unipo.parts.tapered import SignedReward, Tapered, tapered_weight


def two_responses(gap: float, advantage: float = -1.0):
    """Responses of 2 and 1 tokens; log pi - log mu is `gap` per token of the first, 0.5 on the second."""
    mu = tensor([-1.0, -2.0, -0.5])
    shift = tensor([gap, gap, 0.5])
    return batch_of([2, 1], behaviour_logp=mu, logp=mu + shift, advantage=[advantage, advantage, 1.0])


def test_weights_by_hand() -> None:
    # ratios 1/4, 4, 1/4, 4; good responses weigh 1, bad ones min(ratio, 1)
    ratio = tensor([0.25, 4.0, 0.25, 4.0]).log()
    weight = tapered_weight(ratio, tensor([1.0, 1.0, -1.0, -1.0]), (1, 1), (0, 1))
    close(weight, [1.0, 1.0, 0.25, 1.0])


def test_value_and_gradient_by_hand() -> None:
    # the first response moved by -0.3 per token: w = exp(-0.6); mean over its 2 tokens, over 2 responses
    batch = two_responses(-0.3)
    _, gradient = value_and_gradient(Tapered(), batch, SequenceMean())
    w = math.exp(-0.6)
    close(gradient, [w / 4, w / 4, -0.5])


def test_on_policy_it_is_reinforce() -> None:
    batch = two_responses(0.0)
    batch = live(batch, batch.behaviour_logp)
    ours, theirs = (value_and_gradient(part, batch, SequenceMean())[1] for part in (Tapered(), ScoreFunction()))
    close(ours, theirs)


def test_without_negatives_it_is_imitation_of_the_good_ones() -> None:
    batch = two_responses(-2.0)
    _, gradient = value_and_gradient(Tapered(negative=(0.0, 0.0)), batch, SequenceMean())
    close(gradient, [0.0, 0.0, -0.5])


@pytest.mark.parametrize(("gap", "weight"), [(-5.0, math.exp(-10)), (-400.0, 0.0), (0.1, 1.0), (30.0, 1.0)])
def test_a_bad_response_stops_pushing_once_the_policy_has_left_it(gap: float, weight: float) -> None:
    _, gradient = value_and_gradient(Tapered(), two_responses(gap), SequenceMean())
    close(gradient[:2], [weight / 4, weight / 4])
    _, naive = value_and_gradient(Tapered(negative=(1.0, 1.0)), two_responses(gap), SequenceMean())
    close(naive[:2], [0.25, 0.25])


def test_full_importance_sampling_is_a_setting() -> None:
    part = Tapered(positive=(0.0, math.inf), negative=(0.0, math.inf))
    close(part.weight(two_responses(0.7)), [math.exp(1.4), math.exp(0.5)])


def test_the_weight_carries_no_gradient() -> None:
    """With a differentiable weight the gradient would be w A (1 + log pi), not w A."""
    batch = two_responses(-0.3)
    _, detached = value_and_gradient(Tapered(), batch, SequenceMean())
    ratio = batch.layout.seq_sum(batch.logp - batch.behaviour_logp)
    weight = torch.where(tensor([-1.0, 1.0]) > 0, torch.ones_like(ratio), ratio.exp().clamp(max=1))
    loss = (-batch.layout.to_tokens(weight) * batch.advantage * batch.logp * SequenceMean().weights(batch)).sum()
    (attached,) = torch.autograd.grad(loss, batch.logp)
    assert float((attached - detached).abs().max()) > 0.1


@pytest.mark.parametrize(("share", "c", "effective"), [(0.5, 0.5, 0.25), (0.1, -1.0, 1.0), (0.5, 0.0, 0.5)])
def test_the_baseline_sets_the_share_of_good_responses(share: float, c: float, effective: float) -> None:
    good = round(10 * share)
    batch = batch_of([1] * 10, reward=[1.0] * good + [0.0] * (10 - good))
    size = SignedReward(baseline=c)(batch).abs()
    close(size[:good].sum() / size.sum(), tensor(effective))
    close(tensor(share * (1 - c) / (1 + c * (1 - 2 * share))), tensor(effective))


def test_signed_rewards_by_hand() -> None:
    batch = batch_of([1, 1, 1], reward=[1.0, 0.2, 0.9], scored=[True, True, False])
    close(SignedReward(baseline=0.5)(batch), [0.5, -1.5, 0.0])


@pytest.mark.parametrize("part", [Tapered(), Tapered((0.0, 2.0), (0.5, 0.5)), Tapered((0, math.inf), (0, math.inf))])
def test_the_objective_passes_the_checker(part: Tapered) -> None:
    assert check_objective(part, average=SequenceMean()).passed


def test_the_advantage_passes_the_checker() -> None:
    assert check_advantage(SignedReward(0.3)).passed


@pytest.mark.parametrize("limits", [(-0.1, 1.0), (2.0, 1.0)])
def test_limits_that_are_none_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="0 <= a <= b"):
        Tapered(negative=limits)
    with pytest.raises(ConfigError, match="between the two rewards"):
        SignedReward(baseline=1.5)
