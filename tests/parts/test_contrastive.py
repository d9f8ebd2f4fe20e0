"""CoPG: regression of differences of the regularised reward."""

from __future__ import annotations

import itertools

import pytest
import torch
from by_hand import DOUBLE, batch_of, central_differences, close, tensor, value_and_gradient
from torch import Tensor

from unipo.batch import Batch
from unipo.check import check_objective
from unipo.errors import ConfigError
from unipo.parts.contrastive import FORMS, Contrastive


def answers(gain: list[float], reward: list[float], sizes: list[int] | None = None, **columns: list[bool]) -> Batch:
    """One-token answers of one prompt with log pi - log pi_ref = gain."""
    reference = -torch.arange(1, len(gain) + 1, dtype=DOUBLE)
    return batch_of(
        [1] * len(gain), sizes or [len(gain)], reference_logp=reference, logp=reference + tensor(gain), reward=reward, **columns
    )  # fmt: skip


def test_the_pair_by_hand() -> None:
    # R' difference 1 - 0.5 * 0.4 = 0.8; loss 0.64; gradient -2 * 0.5 * 0.8 on the first
    value, gradient = value_and_gradient(Contrastive(beta=0.5), answers([0.3, -0.1], [1.0, 0.0]))
    close(value, [0.64])
    close(gradient, [-0.8, 0.8])


def test_the_other_forms_by_hand() -> None:
    batch = answers([0.3, -0.1], [1.0, 0.0])
    score, by_score = value_and_gradient(Contrastive(beta=0.5, form="score"), batch)
    product, by_product = value_and_gradient(Contrastive(beta=0.5, form="product"), batch)
    close(score, [-0.8 * 0.4])
    close(product, [-(1 - 0.25 * 0.4) * 0.4])
    close(by_score, [-0.8, 0.8])
    close(by_product, [-0.8, 0.8])


@pytest.mark.parametrize("k", [2, 3, 5])
def test_k_responses_are_all_pairs_over_k_minus_one(k: int) -> None:
    draw = torch.Generator().manual_seed(k)
    gain, reward = torch.randn(2, k, generator=draw, dtype=DOUBLE)
    beta = 0.3
    residual = (reward - beta * gain).tolist()
    expected = sum((a - b) ** 2 for a, b in itertools.combinations(residual, 2)) / (k - 1)
    value, gradient = value_and_gradient(Contrastive(beta=beta), answers(gain.tolist(), reward.tolist()))
    close(value, [expected])
    # 2 beta times that of the other forms
    for form in ("score", "product"):
        _, other = value_and_gradient(Contrastive(beta=beta, form=form), answers(gain.tolist(), reward.tolist()))
        close(gradient, 2 * beta * other)
    pairs = sum(
        -((reward[i] - reward[j]) - beta / 2 * (gain[i] - gain[j])) * (gain[i] - gain[j])
        for i, j in itertools.combinations(range(k), 2)
    ) / (k - 1)
    value, _ = value_and_gradient(Contrastive(beta=beta, form="product"), answers(gain.tolist(), reward.tolist()))
    close(value, [float(pairs)])


def test_the_gradient_by_differences() -> None:
    def loss(logp: Tensor) -> Tensor:
        return Contrastive(beta=0.2)(answers([0.0] * 3, [1.0, 0.3, 0.0]).with_columns(None, logp=logp)).sum()

    at = tensor([-1.2, -2.5, -2.0])
    logp = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logp), logp)
    close(gradient, central_differences(loss, at), 1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_constants_order_and_copies_do_not_matter(form: str) -> None:
    part = Contrastive(beta=0.5, form=form)
    base = value_and_gradient(part, answers([0.3, -0.1, 0.2], [1.0, 0.0, 0.4]))
    moved = value_and_gradient(part, answers([0.3, -0.1, 0.2], [8.0, 7.0, 7.4]))
    turned = value_and_gradient(part, answers([0.2, -0.1, 0.3], [0.4, 0.0, 1.0]))
    close(moved[0], base[0])
    close(moved[1], base[1])
    close(turned[0], base[0])
    close(turned[1].flip(0), base[1])
    twice, gradient = value_and_gradient(part, answers([0.3, 0.3], [1.0, 1.0]))
    close(twice, [0.0])
    close(gradient, [0.0, 0.0])


def test_a_prompt_with_one_scored_response_gives_nothing() -> None:
    batch = answers([0.3, -0.1, 0.5, 0.2], [1.0, 0.0, 1.0, float("nan")], [2, 2], scored=[True, True, True, False])
    batch = batch.with_columns(None, mask=torch.tensor([True, True, True, False]))
    value, gradient = value_and_gradient(Contrastive(beta=0.5), batch)
    close(value, [0.64, 0.0])
    close(gradient, [-0.8, 0.8, 0.0, 0.0])
    assert Contrastive(beta=0.5).active(batch).tolist() == [True, True, False, False]


# -- what it converges to: six arms, every pair weighted by how often the behaviour samples it ------------------
REWARD = tensor([1.0, 0.2, -0.4, 0.7, 0.0, 0.5])
REFERENCE = tensor([0.3, 0.1, 0.2, 0.15, 0.05, 0.2])
BETA = 0.5
BEHAVIOURS = (torch.full((6,), 1 / 6, dtype=DOUBLE), tensor([0.5, 0.02, 0.2, 0.08, 0.15, 0.05]))


def expected_loss(logits: Tensor, behaviour: Tensor, form: str = "squared", beta: float = BETA) -> Tensor:
    """E over pairs of independent draws from `behaviour`, by enumeration through the part itself."""
    logp = logits.log_softmax(0)
    pairs = list(itertools.combinations(range(6), 2))
    arms = torch.tensor(pairs).flatten()
    batch = batch_of(
        [1] * len(arms), [2] * len(pairs), reference_logp=REFERENCE.log()[arms], reward=REWARD[arms]
    ).with_columns(None, logp=logp[arms])
    weight = torch.stack([2 * behaviour[i] * behaviour[j] for i, j in pairs])
    return (Contrastive(beta=beta, form=form)(batch) * weight).sum()


def optimum() -> Tensor:
    return (REFERENCE.log() + REWARD / BETA).softmax(0)


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=["uniform", "skewed"])
def test_the_optimum_is_the_same_for_every_sampling_distribution(behaviour: Tensor) -> None:
    assert float(expected_loss(optimum().log(), behaviour)) < 1e-20
    logits = REFERENCE.log().requires_grad_()
    solver = torch.optim.LBFGS([logits], lr=1, max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = expected_loss(logits, behaviour)
        loss.backward()
        return loss

    solver.step(closure)
    close(logits.softmax(0), optimum(), 1e-5)


def test_reinforce_without_ratio_depends_on_the_sampling_distribution() -> None:
    """At the optimum of the regularised problem its expected gradient is not 0, and differs between behaviours."""

    def gradient(behaviour: Tensor) -> Tensor:
        logits = optimum().log().requires_grad_()
        logp = logits.log_softmax(0)
        regularised = (REWARD - BETA * (logp - REFERENCE.log())).detach() - REWARD.mean()
        return torch.autograd.grad((behaviour * regularised * logp).sum(), logits)[0]

    first, second = (gradient(b) for b in BEHAVIOURS)
    assert float(first.abs().max()) > 1e-2
    assert float((first - second).abs().max()) > 1e-2


def test_on_policy_it_climbs_the_regularised_reward() -> None:
    """Minus the expected gradient of the score form is twice that of E[R] - beta KL(pi || pi_ref)."""
    logits = tensor([0.1, -0.3, 0.5, 0.0, 0.9, -0.7]).requires_grad_()
    p = logits.softmax(0)
    (ours,) = torch.autograd.grad(-expected_loss(logits, p.detach(), "score"), logits)
    objective = (p * (REWARD - BETA * (p.log() - REFERENCE.log()))).sum()
    (exact,) = torch.autograd.grad(objective, logits)
    close(ours, 2 * exact)


def test_an_arm_that_is_never_sampled_is_fixed_only_up_to_normalisation() -> None:
    behaviour = tensor([0.0, 0.2, 0.2, 0.2, 0.2, 0.2])
    p = optimum()
    p[0] = 0.9
    p[1:] *= 0.1 / p[1:].sum()
    assert float(expected_loss(p.log(), behaviour)) < 1e-20
    assert float(expected_loss(p.log(), BEHAVIOURS[0])) > 1e-2


@pytest.mark.parametrize("form", FORMS)
def test_the_objective_passes_the_checker(form: str) -> None:
    assert check_objective(Contrastive(beta=0.3, form=form)).passed


def test_settings_that_have_no_gradient_are_refused() -> None:
    with pytest.raises(ConfigError, match="positive for form 'squared'"):
        Contrastive(beta=0.0)
    with pytest.raises(ConfigError, match="one of squared, score, product"):
        Contrastive(form="square")
    assert Contrastive(beta=0.0, form="score").beta == 0
