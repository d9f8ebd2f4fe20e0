"""Continuous tokens by hand: what is drawn, what its log-probability is, and what the step's ratio becomes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unipo.errors import ConfigError
from unipo.parts.continuous import (
    ContinuousOnPolicy,
    DirichletStep,
    SampledTokens,
    SoftDemonstrations,
    SoftTarget,
    concentrations,
    dirichlet_logp,
    log_gamma_variates,
    minus_divergence,
    tokens_logp,
    trace_shares,
)
from unipo.rollout.continuous import step_chance
from unipo.tasks.mnns import sum_traces

P = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
NEVER = -math.inf
MANY = 20_000


def close(a: Tensor, b: list[float] | list[list[float]] | Tensor, tol: float = 1e-12) -> None:
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=tol, atol=tol)


def streams(n: int, step: int = 0):
    return step_chance(torch.arange(n) * 7919 + 3, step)


# -- K sampled tokens -----------------------------------------------------------------------------------------
def test_temperature_three_flattens_the_distribution_of_the_card() -> None:
    # p^(1/3) = .8879, .5848, .4642, which add up to 1.9369
    tempered = (P.log() / SampledTokens(3).temperature).softmax(-1)
    close(tempered, [0.4584, 0.3019, 0.2396], tol=1e-4)
    assert SampledTokens(3, normalised=False).temperature == 1.0


def test_normalised_is_the_sum_and_its_ratio_the_product() -> None:
    new, old = torch.tensor([[0.5, 0.25, 0.5]]).log(), torch.tensor([[0.25, 0.5, 0.125]]).log()
    close(tokens_logp(new, True), [math.log(0.0625)], 1e-6)
    # ratios 2, 1/2, 4: product 4, geometric mean 4^(1/3)
    close((tokens_logp(new, True) - tokens_logp(old, True)).exp(), [4.0], 1e-6)
    close((tokens_logp(new, False) - tokens_logp(old, False)).exp(), [4 ** (1 / 3)], 1e-6)


def test_one_token_is_an_ordinary_token() -> None:
    logp = P.log()[None]
    for rule in (SampledTokens(1), SampledTokens(1, normalised=False)):
        ids, weights = rule.draw(logp.expand(50, -1), streams(50))
        assert ids.shape == (50, 1)
        assert rule.temperature == 1.0
        close(weights, torch.zeros(50, 1))
        close(rule.score(logp.expand(50, -1).gather(1, ids), weights), P.log()[ids[:, 0]])


def test_tokens_are_drawn_with_their_probabilities_and_never_without() -> None:
    p = torch.tensor([0.7, 0.0, 0.2, 0.1], dtype=torch.float64)
    ids, _ = SampledTokens(4).draw(p.log().expand(MANY, -1), streams(MANY))
    share = torch.bincount(ids.flatten(), minlength=4) / ids.numel()
    assert share[1] == 0
    close(share.double(), p, 0.01)


def test_the_mean_embedding_is_unbiased_with_a_kth_of_the_variance() -> None:
    # e takes 0, 1, 3 with .7, .2, .1: mean .5, variance .2 + .9 - .25 = .85
    e = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    for k in (1, 5):
        ids, weights = SampledTokens(k, normalised=False).draw(P.log().expand(MANY, -1), streams(MANY, step=k))
        z = (weights.exp() * e[ids]).sum(-1)
        assert abs(float(z.mean()) - 0.5) < 5 * math.sqrt(0.85 / k / MANY)
        assert float(z.var()) == pytest.approx(0.85 / k, rel=0.05)


def test_many_tokens_approach_the_whole_softmax() -> None:
    rule = SampledTokens(100_000, normalised=False)
    ids, weights = rule.draw(P.log()[None], streams(1))
    fed = torch.zeros(3, dtype=torch.float64).index_add_(0, ids[0], weights[0].exp())
    close(fed, P, 0.006)


def test_random_numbers_belong_to_the_row() -> None:
    alone = SampledTokens(3).draw(P.log()[None], step_chance(torch.tensor([11]), 2))
    among = SampledTokens(3).draw(P.log().expand(3, -1), step_chance(torch.tensor([5, 11, 6]), 2))
    assert torch.equal(alone[0][0], among[0][1])


# -- Dirichlet ------------------------------------------------------------------------------------------------
def test_density_by_hand() -> None:
    # Dir(2, 1) at (1/4, 3/4): Gamma(3) / (Gamma(2) Gamma(1)) * (1/4) = 1/2
    log_p = torch.tensor([[2 / 3, 1 / 3]], dtype=torch.float64).log()
    log_a = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    close(dirichlet_logp(log_p, log_a, scale=3.0, floor=1e-3), [math.log(0.5)])


def test_density_is_torchs_on_the_support_and_ignores_the_rest() -> None:
    a = torch.tensor([[0.6, 0.4, 0.0]], dtype=torch.float64)
    got = dirichlet_logp(P.log()[None], a.log(), scale=1.0, floor=1e-3)
    expected = torch.distributions.Dirichlet(torch.tensor([0.7, 0.2], dtype=torch.float64) / 0.9).log_prob(a[0, :2])
    close(got[0], expected)


def test_floor_and_renormalisation() -> None:
    log_p = torch.tensor([[0.9, 1e-5, 0.0999]], dtype=torch.float64).log()
    inside = torch.tensor([[True, True, False]])
    close(concentrations(log_p, inside, 2.0, 0.1), [[1.8, 0.2, 0.0]])


def test_below_the_floor_there_is_no_gradient_but_through_the_sum() -> None:
    log_p = torch.tensor([[0.9, 1e-5]], dtype=torch.float64).log().requires_grad_()
    log_a = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    dirichlet_logp(log_p, log_a, 1.0, 0.1).sum().backward()
    assert log_p.grad is not None
    assert log_p.grad[0, 1] == 0
    assert log_p.grad[0, 0] != 0


def test_density_gradient() -> None:
    log_p = P.log()[None].clone().requires_grad_()
    log_a = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    assert torch.autograd.gradcheck(lambda x: dirichlet_logp(x, log_a, 1.5, 1e-3), (log_p,))


def test_the_same_policy_has_ratio_one() -> None:
    rule = DirichletStep()
    log_p = P.log().expand(100, -1)
    ids, log_a = rule.draw(log_p, streams(100))
    a, b = (rule.score(log_p.gather(1, ids), log_a) for _ in range(2))
    assert torch.equal((a - b).exp(), torch.ones_like(a))
    assert bool(torch.isfinite(a).all())


def test_a_draw_sums_to_one_and_is_zero_outside_its_support() -> None:
    p = torch.tensor([0.6, 0.0005, 0.3, 0.0995], dtype=torch.float64)
    ids, log_a = DirichletStep(floor=1e-3).draw(p.log().expand(1000, -1), streams(1000))
    a = torch.zeros(1000, 4, dtype=torch.float64).scatter_(1, ids, log_a.exp())
    close(a.sum(-1), torch.ones(1000))
    assert bool((a[:, 1] == 0).all())
    assert bool(torch.isfinite(log_a[ids != 1]).all())  # e^-1000 is a weight, not an empty slot


def test_draws_have_the_mean_and_variance_of_a_dirichlet() -> None:
    # mean p, variance p (1 - p) / (scale + 1)
    for scale in (1.0, 10.0):
        ids, log_a = DirichletStep(scale=scale).draw(P.log().expand(MANY, -1), streams(MANY))
        a = torch.zeros(MANY, 3, dtype=torch.float64).scatter_(1, ids, log_a.exp())
        close(a.mean(0), P, 0.015)
        close(a.var(0), P * (1 - P) / (scale + 1), 0.01)


@pytest.mark.parametrize("shape", [0.3, 1.0, 4.5])
def test_gamma_variates_have_their_moments(shape: float) -> None:
    g = log_gamma_variates(torch.full((MANY, 1), shape, dtype=torch.float64), streams(MANY)).exp()
    assert float(g.mean()) == pytest.approx(shape, rel=0.04)
    assert float(g.var()) == pytest.approx(shape, rel=0.1)


def test_small_shapes_do_not_underflow() -> None:
    # E[log G] = digamma(c), about -1/c; the variate itself would be 0 in half of the draws
    log_g = log_gamma_variates(torch.full((MANY, 1), 1e-3, dtype=torch.float64), streams(MANY))
    assert bool(torch.isfinite(log_g).all())
    assert float(log_g.mean()) == pytest.approx(float(torch.digamma(torch.tensor(1e-3))), rel=0.04)


def test_the_likeliest_token_is_always_in_the_support() -> None:
    flat = torch.full((2, 50), 1 / 50, dtype=torch.float64).log()
    rule = DirichletStep(floor=0.1)
    ids, log_a = rule.draw(flat, streams(2))
    assert ids.shape == (2, 10)
    assert bool(((log_a > NEVER).sum(-1) == 1).all())
    close(rule.score(flat.gather(1, ids), log_a), [0.0, 0.0])


# -- shares of traces -----------------------------------------------------------------------------------------
def traces_of(*digits: int) -> list[list[str]]:
    return [[f"S{s}" for s in trace] for trace in sum_traces(digits)]


def test_the_shares_of_one_and_two() -> None:
    # +-1, then the answer 2 - 1 = 1; as a middle state, the second step has all four sums
    assert trace_shares(traces_of(1, 2)) == [{"S1": 0.5, "S-1": 0.5}, {"S1": 1.0}]
    assert trace_shares(traces_of(1, 2, 9))[1] == {"S3": 0.25, "S1": 0.25, "S-1": 0.25, "S-3": 0.25}


def test_traces_that_meet_add_up() -> None:
    # +-1 +-1: sums 2, 0, 0, -2 after two digits
    assert trace_shares(traces_of(1, 1, 1))[1] == {"S-2": 0.25, "S0": 0.5, "S2": 0.25}


def test_one_trace_is_a_chain_of_ordinary_tokens() -> None:
    assert trace_shares(traces_of(1, 1, 2)[:1]) == [{"S-1": 1.0}, {"S-2": 1.0}, {"S0": 1.0}]


def test_of_some_traces_only_their_own_states_are_taught() -> None:
    # the best three of (1, 1, 2): -1 -2 0, 1 2 0, -1 0 2
    assert trace_shares(traces_of(1, 1, 2)[:3]) == [
        {"S-1": 2 / 3, "S1": 1 / 3},
        {"S-2": 1 / 3, "S2": 1 / 3, "S0": 1 / 3},
        {"S0": 1.0},
    ]


# -- soft targets ---------------------------------------------------------------------------------------------
def test_divergence_by_hand() -> None:
    # target (1/2, 1/2) against (.7, .2): KL = ln(.5/.7)/2 + ln(.5/.2)/2
    target = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    close(minus_divergence(P.log()[None], target), [-0.5 * (math.log(0.5 / 0.7) + math.log(0.5 / 0.2))])


def test_a_target_of_one_token_is_its_log_probability_and_the_policy_itself_is_zero() -> None:
    close(minus_divergence(P.log()[None], torch.tensor([[NEVER, 0.0, NEVER]])), [math.log(0.2)])
    close(minus_divergence(P.log()[None], P.log()[None]), [0.0])


def test_divergence_gradient_by_logits_is_target_minus_policy() -> None:
    z = torch.tensor([[0.3, -1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.float64)
    minus_divergence(z.log_softmax(-1), target.log()).sum().backward()
    assert z.grad is not None
    close(z.grad, target - z.detach().softmax(-1))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: SampledTokens(0),
        lambda: DirichletStep(scale=0.0),
        lambda: DirichletStep(floor=1.0),
        lambda: SoftTarget("both"),
        lambda: SoftDemonstrations(traces=-1),
        lambda: ContinuousOnPolicy(steps=0),
        lambda: ContinuousOnPolicy(step=SoftTarget()),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong) -> None:
    with pytest.raises(ConfigError):
        wrong()
