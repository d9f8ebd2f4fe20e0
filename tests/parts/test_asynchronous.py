"""Staleness control and the decoupled objective."""

from __future__ import annotations

import heapq
import math
import random

import pytest
import torch
from by_hand import batch_of, close, live, singles, tensor, value_and_gradient

from unipo.batch import Batch
from unipo.check import check_objective
from unipo.errors import ConfigError
from unipo.parts.asynchronous import Asynchronous, LogLinearDecoupled, log_linear_share, may_start
from unipo.parts.mismatch import MismatchGate, MismatchWeight
from unipo.parts.objective import Clipped


def decoupled(batch: Batch) -> Batch:
    for part in (MismatchGate(high=5.0), MismatchWeight(cap=math.inf)):
        batch = batch.with_columns(None, advantage=part(batch))
    return batch


def policies(mu: list[float], prox: list[float], now: list[float], advantage: list[float], **columns: object) -> Batch:
    """One response; probabilities of its tokens under the three policies."""
    logs = {n: tensor(p).log() for n, p in (("behaviour_logp", mu), ("old_logp", prox), ("logp", now))}
    return batch_of([len(mu)], **logs, advantage=advantage, **columns)


# -- the objective ---------------------------------------------------------------------------------------------
def test_a_good_old_token_keeps_its_gradient_where_ppo_has_none() -> None:
    # mu 0.1, prox 0.3, pi 0.33: u = 1.1 inside, w = 3, objective 3.3; plain PPO's ratio 3.3 is clipped
    batch = policies([0.1], [0.3], [0.33], [1.0])
    value, gradient = value_and_gradient(Clipped(), decoupled(batch))
    close(value, [-3.3])
    close(gradient, [-3.3])
    plain = batch.with_columns(None, old_logp=batch.behaviour_logp)
    assert value_and_gradient(Clipped(), plain)[1].tolist() == [0.0]


def test_with_prox_equal_to_the_sampler_it_is_ppo() -> None:
    batch = singles([1.5, 0.5, 1.1, 0.9], [1.0, -1.0, 2.0, -0.5])
    batch = batch.with_columns(None, behaviour_logp=batch.old_logp)
    for a, b in zip(value_and_gradient(Clipped(), decoupled(batch)), value_and_gradient(Clipped(), batch), strict=True):
        assert torch.equal(a, b)


def test_at_the_first_update_it_is_the_exact_off_policy_gradient() -> None:
    # theta = prox: gradient -w A, clipped nowhere
    batch = policies([0.2, 0.5, 0.4], [0.3, 0.1, 0.4], [0.3, 0.1, 0.4], [1.0, -2.0, 0.5])
    close(value_and_gradient(Clipped(), decoupled(batch))[1], [-1.5, 0.4, -0.5])


def test_too_large_weights_are_dropped_not_capped() -> None:
    batch = policies([0.1, 0.1], [0.49, 0.51], [0.5, 0.5], [1.0, 1.0])
    close(decoupled(batch).advantage, [4.9, 0.0])


def test_each_token_counts_with_the_version_that_wrote_it() -> None:
    """A response of two versions: taking one version's log-probs for all of it changes the loss."""
    first, second = [0.2, 0.3, 0.5, 0.4], [0.3, 0.2, 0.4, 0.6]
    prox, now = [0.25, 0.25, 0.45, 0.5], [0.26, 0.24, 0.46, 0.5]
    own = policies(first[:2] + second[2:], prox, now, [1.0] * 4)
    losses = [value_and_gradient(Clipped(), decoupled(own))[0].sum()]
    for mu in (first, second):
        losses.append(value_and_gradient(Clipped(), decoupled(policies(mu, prox, now, [1.0] * 4)))[0].sum())
    close(losses[0], tensor(-(0.26 / 0.2 + 0.24 / 0.3 + 0.46 / 0.4 + 0.5 / 0.6)))
    assert all(abs(float(losses[0] - other)) > 0.02 for other in losses[1:])


# -- interpolated prox -----------------------------------------------------------------------------------------
def test_the_share_by_hand() -> None:
    # v_theta 5, v_prox 4: behaviour 2 -> lag 2 -> 2/3; behaviour 4 -> lag 0 -> 0
    close(log_linear_share(torch.tensor([2, 0, 1])).double(), [2 / 3, 0.0, 0.5], 1e-7)


def test_interpolated_by_hand() -> None:
    # pi/mu = 2 with lag 1: prox half way, u = w = sqrt 2; with lag 0: u = 2, w = 1, clipped
    batch = policies([0.2, 0.2], [0.9, 0.9], [0.4, 0.4], [1.0, 1.0], lag=torch.tensor([1, 0]))
    value, gradient = value_and_gradient(LogLinearDecoupled(low=0.2, high=0.5), batch)
    close(value, [-2.0, -1.5])
    close(gradient, [-2.0, 0.0])


def test_interpolated_without_lag_is_ppo_on_the_sampler() -> None:
    batch = singles([1.5, 0.5, 1.1, 0.9], [1.0, -1.0, 2.0, -0.5])
    batch = batch.with_columns(None, behaviour_logp=batch.old_logp, lag=torch.zeros(4, dtype=torch.int64))
    for a, b in zip(value_and_gradient(LogLinearDecoupled(), batch), value_and_gradient(Clipped(), batch), strict=True):
        close(a, b, 1e-12)


def test_interpolated_weights_beyond_the_cap_are_dropped() -> None:
    batch = policies([0.01], [0.9], [0.9], [-1.0], lag=torch.tensor([9]))
    value, gradient = value_and_gradient(LogLinearDecoupled(), batch)
    assert (value.tolist(), gradient.tolist()) == ([0.0], [0.0])
    open_ = live(batch, batch.logp)
    assert value_and_gradient(LogLinearDecoupled(cap=100.0), open_)[1].tolist() != [0.0]


@pytest.mark.parametrize("part", [LogLinearDecoupled(), LogLinearDecoupled(low=0.05, high=0.1, dual=1.2, cap=1.1)])
def test_the_objective_passes_the_checker(part: LogLinearDecoupled) -> None:
    assert check_objective(part).passed


# -- admission -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("version", "total"), [(0, 8), (1, 12)])
def test_admission_by_hand(version: int, total: int) -> None:
    """B = 4, eta = 1: 8 rollouts in all before the first update, 12 after it, running ones included."""
    started = [may_start(n - n // 2, n // 2, version, batch=4, staleness=1) for n in range(20)]
    assert started == [True] * total + [False] * (20 - total)


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_trained_on_later_than_allowed(staleness: int, seed: int) -> None:
    """A queue with random completion times; trained on in the order of starting, which waits for slow ones."""
    draw, batch = random.Random(seed), 4
    clock, version, started, finished = 0.0, 0, 0, set()
    running: list[tuple[float, int]] = []
    born: list[int] = []
    lags = []
    while version < 60:
        while may_start(len(finished), len(running), version, batch, staleness):
            heapq.heappush(running, (clock + draw.expovariate(1.0), started))
            born.append(version)
            started += 1
        clock, number = heapq.heappop(running)
        finished.add(number)
        next_batch = range(version * batch, (version + 1) * batch)
        if finished.issuperset(next_batch):
            lags += [version - born[n] for n in next_batch]
            version += 1
    assert max(lags) <= staleness
    assert staleness == 0 or max(lags) > 0


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        Asynchronous(staleness=-1)
    with pytest.raises(ConfigError, match="at least 1"):
        LogLinearDecoupled(cap=0.5)
    assert Asynchronous(staleness=2).measure(batch_of([2], lag=torch.tensor([1, 2]))) == {"staleness/mean": 1.5, "staleness/max": 2.0}  # fmt: skip
