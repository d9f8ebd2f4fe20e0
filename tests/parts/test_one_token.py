"""OTR: one-token rollouts on demonstrations."""

from __future__ import annotations

import pytest
import torch
from by_hand import DOUBLE, batch_of, close, tensor, value_and_gradient
from torch import Tensor

from unipo.chance import token_chances
from unipo.check import check_objective
from unipo.errors import ConfigError
from unipo.method import Term
from unipo.parts.average import SequenceMean
from unipo.parts.one_token import OneTokenRollout
from unipo.parts.preference import LogLikelihood
from unipo.policy.distribution import candidate_logp, draw_tokens
from unipo.policy.head import HeadSpec
from unipo.registry import get_method

P = tensor([0.5, 0.3, 0.2])
FIVE = tensor([0.35, 0.3, 0.2, 0.1, 0.05])


def by_logits(logits: Tensor, target: int, part: OneTokenRollout, drawn: Tensor | None = None) -> Tensor:
    """Gradient by the logits, with the shares of `drawn` ids, or (None) infinitely many draws."""
    logits = logits.detach().clone().requires_grad_()
    logp = logits.log_softmax(0)
    if drawn is None:
        share = (logits.detach() / part.temperature).softmax(0)
    else:
        share = torch.bincount(drawn.flatten(), minlength=len(logits)).to(DOUBLE) / drawn.numel()
    batch = batch_of([1], resampled_hits=share[target][None].tolist(), sample_id=torch.zeros(1, dtype=torch.int64))
    batch = batch.with_columns(None, logp=logp[target][None], resampled_logp=(share * logp).sum()[None])
    return torch.autograd.grad(part(batch).sum(), logits)[0]


def draws(p: Tensor, n: int, temperature: float = 1.0) -> Tensor:
    """n tokens from p by the function the policy uses: hidden states that are the logits, an identity output layer."""
    rows = -(-n // 500)
    chance = token_chances(torch.arange(rows), torch.zeros(rows, dtype=torch.int64), 1, 500)
    return draw_tokens(p.log().expand(rows, -1), torch.eye(len(p), dtype=DOUBLE), chance, HeadSpec(temperature))


def test_the_exact_gradient_by_hand() -> None:
    # pi = (.5, .3, .2), y = 0, kappa 1, beta -0.1: -(1.1) * .5 * ((1, 0, 0) - pi)
    gradient = by_logits(P.log(), 0, OneTokenRollout(temperature=1.0, beta=-0.1))
    close(gradient, [-0.275, 0.165, 0.11])


def test_the_loss_by_hand() -> None:
    # 3 of 4 draws hit (log pi -1), the other has log pi -3: -(3 * -1 + -0.1 * -3) / 4
    batch = batch_of([1], logp=[-1.0], resampled_hits=[0.75], resampled_logp=[(3 * -1.0 - 3.0) / 4])
    close(OneTokenRollout()(batch), [-(3 * -1.0 - 0.1 * -3.0) / 4])


@pytest.mark.parametrize("target", [0, 3])
def test_many_draws_average_to_dft_scaled(target: int) -> None:
    """kappa = 1: (1 - beta) pi(y) grad log pi(y), on 1e5 draws of a 5-token softmax."""
    part = OneTokenRollout(temperature=1.0, beta=-0.1)
    onehot = torch.eye(5, dtype=DOUBLE)[target]
    exact = -(1 - part.beta) * FIVE[target] * (onehot - FIVE)
    close(by_logits(FIVE.log(), target, part), exact)
    close(by_logits(FIVE.log(), target, part, draws(FIVE, 100_000)), exact, 5e-3)


def test_many_draws_at_a_temperature_are_the_exact_version() -> None:
    part = OneTokenRollout()
    drawn = draws(FIVE, 100_000, part.temperature)
    close(by_logits(FIVE.log(), 1, part, drawn), by_logits(FIVE.log(), 1, part), 5e-3)


def test_beta_one_has_no_gradient_on_average_and_beta_zero_is_dft() -> None:
    close(by_logits(P.log(), 1, OneTokenRollout(temperature=1.0, beta=1.0)), [0.0] * 3)
    logits = P.log().requires_grad_()
    dft = LogLikelihood(dynamic=True)(batch_of([1]).with_columns(None, logp=logits.log_softmax(0)[1][None]))
    (expected,) = torch.autograd.grad(dft.sum(), logits)
    close(by_logits(P.log(), 1, OneTokenRollout(temperature=1.0, beta=0.0)), expected)


def test_a_certain_token_is_left_alone() -> None:
    certain = tensor([1 - 2e-12, 1e-12, 1e-12])
    assert bool((draws(certain, 5000) == 0).all())
    gradient = by_logits(certain.log(), 0, OneTokenRollout(temperature=1.0), torch.zeros(256, dtype=torch.int64))
    close(gradient, [0.0] * 3, 1e-11)


def test_a_token_that_is_never_drawn_gets_no_pull() -> None:
    drawn = torch.tensor([0] * 200 + [1] * 56)
    gradient = by_logits(P.log(), 2, OneTokenRollout(beta=0.0), drawn)
    close(gradient, [0.0] * 3)


def test_drawn_log_probs_have_the_gradient_of_the_counts() -> None:
    """d mean_j log pi(a_j) / d logits = counts/K - pi, through the chunked output layer."""
    logits = FIVE.log()[None].clone().requires_grad_()
    ids = torch.tensor([[0, 0, 4, 1]])
    candidate_logp(logits, torch.eye(5, dtype=DOUBLE), ids).mean(1).sum().backward()
    assert logits.grad is not None
    close(logits.grad[0], tensor([0.5, 0.25, 0.0, 0.0, 0.25]) - FIVE)


def test_draws_depend_on_response_place_and_step_alone() -> None:
    ids, places = torch.tensor([7, 7, 9]), torch.tensor([0, 1, 0])
    chance = token_chances(ids, places, 3, 4)
    assert torch.equal(token_chances(ids[[2, 0]], places[[2, 0]], 3, 4), chance[[2, 0]])
    assert len(set(chance.flatten().tolist())) == 12
    assert not bool((token_chances(ids, places, 4, 4) == chance).any())
    close(token_chances(torch.arange(200), torch.zeros(200, dtype=torch.int64), 1, 200).mean(), tensor(0.5), 5e-3)


def test_masked_tokens_have_no_loss() -> None:
    batch = batch_of([2], logp=[-1.0, -2.0], resampled_hits=[0.5, 0.5], resampled_logp=[-3.0, -1.0], mask=[True, False])
    value, gradient = value_and_gradient(OneTokenRollout(), batch, SequenceMean())
    assert float(value[1]) == 0.0
    assert float(gradient[1]) == 0.0
    close(gradient[:1], [-0.5 - 0.1 * 0.5])


def test_the_objective_passes_the_checker() -> None:
    assert check_objective(OneTokenRollout()).passed


def test_settings_that_mean_nothing_are_refused() -> None:
    for wrong in ({"count": 0}, {"temperature": 0.0}, {"beta": 1.5}):
        with pytest.raises(ConfigError, match="OneTokenRollout needs"):
            OneTokenRollout(**wrong)
    with pytest.raises(ConfigError, match="draw tokens anew in different ways"):
        get_method("otr").but(extra=(Term(OneTokenRollout(count=8), SequenceMean()),))
