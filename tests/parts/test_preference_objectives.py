"""DPO and maximum likelihood."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import batch_of, central_differences, close, value_and_gradient

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.parts.average import GroupMean, TokenMean
from unipo.parts.preference import DPO, LogLikelihood


def pair(logp: list[float], reference: list[float], preference: tuple[int, int] = (1, 0)) -> Batch:
    """Chosen and rejected of one token each (or two, sharing them evenly)."""
    half = len(logp) // 2
    return batch_of([half, half], [2], logp=logp, reference_logp=reference, preference=list(preference))


def test_a_pair_by_hand() -> None:
    """D = (-10 + 12) - (-14 + 13) = 3; loss = -log sigma(0.3) = 0.554355; slope -0.1 sigma(-0.3) = -0.0425557."""
    loss, gradient = value_and_gradient(DPO(beta=0.1), pair([-10, -14], [-12, -13]))
    assert loss.item() == pytest.approx(0.554355, abs=1e-6)
    close(gradient, [-0.0425557, 0.0425557], 1e-7)


def test_label_smoothing_by_hand() -> None:
    """0.9 (0.554355) + 0.1 (0.554355 + 0.3); slope -0.1 (sigma(-0.3) - 0.1)."""
    loss, gradient = value_and_gradient(DPO(beta=0.1, label_smoothing=0.1), pair([-10, -14], [-12, -13]))
    assert loss.item() == pytest.approx(0.584355, abs=1e-6)
    close(gradient, [-0.0325557, 0.0325557], 1e-7)


def test_without_a_reference_the_margin_is_the_policys() -> None:
    loss = DPO(beta=0.1, reference_free=True)(pair([-10, -14], [math.nan, math.nan]))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.4)))
    assert "reference_logp" not in DPO(reference_free=True).needs


def test_at_the_reference_every_pair_has_loss_log_two_and_weight_beta_half() -> None:
    loss, gradient = value_and_gradient(DPO(beta=0.3), pair([-1, -2, -3, -4], [-1, -2, -3, -4]))
    close(loss, [math.log(2)])
    close(gradient, [-0.15, -0.15, 0.15, 0.15])


def test_the_order_of_the_two_responses_follows_the_preference() -> None:
    forward, backward = pair([-10, -14], [-12, -13]), pair([-14, -10], [-13, -12], preference=(0, 1))
    close(DPO()(backward), DPO()(forward))
    close(value_and_gradient(DPO(), backward)[1], value_and_gradient(DPO(), forward)[1].flip(0))


def test_constants_of_the_prompt_cancel() -> None:
    base = DPO()(pair([-10, -14], [-12, -13]))
    close(DPO()(pair([-10, -14], [-12 + 5, -13 + 5])), base)
    close(DPO()(pair([-10 + 3, -14 + 3], [-12, -13])), base)


def test_logps_are_summed_not_averaged() -> None:
    batch = batch_of([3, 1], [2], logp=[-1.0, -2.0, -3.0, -5.0], reference_logp=[0.0] * 4, preference=[1, 0])
    assert DPO().margin(batch).item() == pytest.approx(-6 + 5)


def test_masked_tokens_and_empty_responses() -> None:
    batch = batch_of(
        [2, 0], [2], logp=[-1.0, -math.inf], reference_logp=[-2.0, math.nan], preference=[1, 0], mask=[True, False]
    )
    loss, gradient = value_and_gradient(DPO(), batch)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.1)))
    assert gradient.tolist()[1] == 0
    assert math.isfinite(gradient.tolist()[0])


def test_only_the_two_logits_of_a_pair_move() -> None:
    """Tabular policy over six answers, pair (2, 5): the normaliser cancels, so the others have no gradient at all."""
    logits = torch.linspace(-1, 1, 6, dtype=torch.float64).requires_grad_()
    reference = torch.zeros(6, dtype=torch.float64).log_softmax(0)
    index = torch.tensor([2, 5])
    batch = batch_of([1, 1], [2], reference_logp=reference[index], preference=[1, 0])
    loss = DPO()(batch.with_columns(None, logp=logits.log_softmax(0)[index])).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    close(gradient[[0, 1, 3, 4]], [0, 0, 0, 0], 1e-15)
    assert float(gradient[2]) == pytest.approx(-float(gradient[5]))


def test_the_bradley_terry_policy_is_stationary() -> None:
    """With labels drawn from sigma(r_i - r_j), the optimum is pi ~ ref exp(r / beta)."""
    draw = torch.Generator().manual_seed(3)
    reward, reference = torch.randn(8, generator=draw).double(), torch.randn(8, generator=draw).double().log_softmax(0)
    pairs = [(i, j) for i in range(8) for j in range(8) if i != j]
    index = torch.tensor(pairs).flatten()
    batch = batch_of(
        [1] * len(index), [2] * len(pairs), reference_logp=reference[index], preference=[1, 0] * len(pairs)
    )
    chance = torch.sigmoid(reward[index[0::2]] - reward[index[1::2]])

    def slope(logits: torch.Tensor) -> float:
        logits = logits.clone().requires_grad_()
        values = DPO(beta=0.5)(batch.with_columns(None, logp=logits.log_softmax(0)[index]))
        (gradient,) = torch.autograd.grad((chance * values).sum(), logits)
        return float(gradient.abs().max())

    assert slope(reference + reward / 0.5) < 1e-12
    assert slope(reference + reward) > 0.1


@pytest.mark.parametrize("part", [DPO(), DPO(label_smoothing=0.2), DPO(reference_free=True)])
def test_gradients_three_ways(part: DPO) -> None:
    draw = torch.Generator().manual_seed(0)
    batch = batch_of(
        [3, 2, 0, 4],
        [2, 2],
        logp=-torch.rand(9, generator=draw, dtype=torch.float64),
        reference_logp=-torch.rand(9, generator=draw, dtype=torch.float64),
        preference=[0, 1, 1, 0],
    )
    assert torch.autograd.gradcheck(lambda x: part(batch.with_columns(None, logp=x)), batch.logp)
    close(part.pieces(batch).gradient, value_and_gradient(part, batch)[1])


def test_what_is_not_a_pair_is_refused() -> None:
    three = batch_of([1] * 3, [3], logp=[-1.0] * 3, reference_logp=[-1.0] * 3, preference=[2, 1, 0])
    with pytest.raises(DataError, match=r"pairs need two responses per prompt, got groups of \[3\]"):
        DPO()(three)
    with pytest.raises(DataError, match="equal preference on both sides"):
        DPO()(pair([-1, -1], [-1, -1], preference=(1, 1)))
    with pytest.raises(ConfigError, match="DPO needs beta > 0"):
        DPO(beta=0)
    with pytest.raises(ConfigError, match=r"label_smoothing < 0\.5"):
        DPO(label_smoothing=0.5)


# -- maximum likelihood --------------------------------------------------------------------------------
def test_a_uniform_model_has_loss_log_vocabulary() -> None:
    batch = batch_of([3, 2], logp=[-math.log(50)] * 5)
    loss = (LogLikelihood()(batch) * TokenMean().weights(batch)).sum()
    assert loss.item() == pytest.approx(math.log(50))


def test_the_gradient_by_logits_is_softmax_minus_onehot_over_the_count() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    targets, mask = torch.tensor([0, 3, 5, 2]), torch.tensor([True, True, False, True])
    logp = logits.log_softmax(1)[torch.arange(4), targets]
    batch = batch_of([4], mask=mask).with_columns(None, logp=logp)
    loss = (LogLikelihood()(batch) * TokenMean().weights(batch)).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    onehot = torch.nn.functional.one_hot(targets, 6)
    close(gradient, (logits.softmax(1) - onehot) / 3 * mask[:, None])


def test_dynamic_weights_each_token_by_its_own_probability() -> None:
    """At pi = 1/4 the gradient is a quarter of SFT's, at pi = 1 the same."""
    batch = batch_of([2], logp=[math.log(0.25), 0.0])
    close(value_and_gradient(LogLikelihood(), batch)[1], [-1, -1])
    close(value_and_gradient(LogLikelihood(dynamic=True), batch)[1], [-0.25, -1])


def test_dynamic_weights_carry_no_gradient() -> None:
    batch = batch_of([3], logp=[-0.2, -1.5, -3.0])
    weight = batch.logp.detach().exp()
    frozen = central_differences(lambda x: -(weight * x).sum(), batch.logp.detach())
    close(value_and_gradient(LogLikelihood(dynamic=True), batch)[1], frozen, 1e-7)


@pytest.mark.parametrize("part", [LogLikelihood(), LogLikelihood(dynamic=True)])
def test_pieces_of_the_likelihood(part: LogLikelihood) -> None:
    batch = batch_of([2, 1], logp=[-0.2, -math.inf, -3.0], mask=[True, False, True])
    close(part.pieces(batch).gradient, value_and_gradient(part, batch)[1])


def test_three_and_seven_targets_accumulate_to_the_gradient_of_ten() -> None:
    batch = batch_of([3, 7], logp=torch.linspace(-2, -0.1, 10, dtype=torch.float64))
    weight = TokenMean().weights(batch)
    whole = torch.autograd.grad((LogLikelihood()(batch) * weight).sum(), batch.logp)[0]
    held = batch.with_columns("token", w=weight)
    total = sum((LogLikelihood()(p) * p.w).sum() for p in (held.take_sequences([0]), held.take_sequences([1])))
    close(torch.autograd.grad(total, batch.logp)[0], whole)


def test_the_average_of_pairs_is_over_pairs() -> None:
    batch = batch_of(
        [1, 1, 1, 1], [2, 2], logp=[-10, -14, -1, -1], reference_logp=[-12, -13, -1, -1], preference=[1, 0, 1, 0]
    )
    loss = (DPO()(batch) * GroupMean().weights(batch, "prompt")).sum()
    assert loss.item() == pytest.approx((0.554355 + math.log(2)) / 2, abs=1e-6)
