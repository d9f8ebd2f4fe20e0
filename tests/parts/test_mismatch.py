"""Rollout correction: weights and gates on pi_old / mu."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import DOUBLE, batch_of, close, live, tensor, value_and_gradient
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.parts.mismatch import DivergenceGate, MismatchGate, MismatchWeight, effective_share, mismatch_ratio
from unipo.parts.objective import Clipped, ClippedWeight, ScoreFunction
from unipo.parts.part import Credit

R = [1.5, 0.2, 4.0]  # product 1.2, geometric mean 1.2^(1/3) = 1.0627


def sampled(r: list[float] = R, lengths: list[int] | None = None, **columns: object) -> Batch:
    old = -torch.arange(1, len(r) + 1, dtype=DOUBLE)
    given: dict[str, object] = {"advantage": torch.ones(len(r), dtype=DOUBLE)}
    return batch_of(lengths or [len(r)], old_logp=old, behaviour_logp=old - tensor(r).log(), **(given | columns))


def corrected(*parts: Credit, batch: Batch | None = None) -> Tensor:
    batch = sampled() if batch is None else batch
    for part in parts:
        batch = batch.with_columns(None, advantage=part(batch))
    return batch.advantage


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((MismatchWeight(cap=2.0),), [1.5, 0.2, 2.0]),
        ((MismatchWeight(cap=5.0, floor=0.5),), [1.5, 0.5, 4.0]),
        ((MismatchGate(low=0.5, high=5.0), MismatchWeight(cap=math.inf)), [1.5, 0.0, 4.0]),
        ((MismatchWeight(level="sequence", cap=2.0),), [1.2] * 3),
        ((MismatchWeight(level="sequence", cap=1.1),), [1.1] * 3),
        ((MismatchWeight(level="geometric"),), [1.2 ** (1 / 3)] * 3),
        ((MismatchGate(level="sequence", high=3.0),), [1.0] * 3),
        ((MismatchGate(level="sequence", high=1.1),), [0.0] * 3),
        ((MismatchGate(level="geometric", low=0.999, high=1.002),), [0.0] * 3),
        ((MismatchGate(level="geometric", low=0.9, high=1.1), MismatchWeight(cap=math.inf)), R),
        ((MismatchWeight(cap=2.0, normalised=True),), [1.5 / (3.7 / 3), 0.2 / (3.7 / 3), 2 / (3.7 / 3)]),
    ],
)
def test_by_hand(parts: tuple[Credit, ...], expected: list[float]) -> None:
    close(corrected(*parts), expected)


def test_normalised_response_weights_have_mean_one_over_responses() -> None:
    # responses of 3 and 1 tokens with products 1.2 and 2.0: mean 1.6
    batch = sampled([*R, 2.0], [3, 1])
    close(corrected(MismatchWeight(level="sequence", cap=9.0, normalised=True), batch=batch), [0.75] * 3 + [1.25])


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_without_mismatch_nothing_changes(level: str) -> None:
    batch = sampled([1.0] * 4, [3, 1], advantage=[1.0, -2.0, 0.5, 3.0])
    gates = (MismatchGate(level=level, low=0.999, high=1.002), DivergenceGate(limit=1e-9))
    weights = (MismatchWeight(level=level), MismatchWeight(level=level, normalised=True))
    assert torch.equal(corrected(*gates, *weights, batch=batch), batch.advantage)


def test_weights_never_exceed_the_cap_and_never_raise_a_small_ratio() -> None:
    r = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=DOUBLE) * 6
    weight = MismatchWeight(cap=2.0).weight(sampled(r.tolist()))
    assert float(weight.max()) == 2.0
    assert bool((weight <= r + 1e-12).all())


def test_a_weight_on_the_advantage_is_a_weight_on_the_clipped_loss() -> None:
    """min(rho A, clip(rho) A) scales with A, also where it is clipped."""
    batch = sampled([0.5, 3.0, 1.4, 0.7], advantage=[1.0, -1.0, 2.0, -0.5])
    batch = live(batch, batch.old_logp + tensor([0.3, -0.4, 0.05, 0.0]))
    part = MismatchWeight(cap=2.0)
    loss, gradient = value_and_gradient(Clipped(), batch)
    weighed = value_and_gradient(Clipped(), batch.with_columns(None, advantage=part(batch)))
    close(weighed[0], part.weight(batch) * loss)
    close(weighed[1], part.weight(batch) * gradient)


def test_masked_tokens_are_in_no_ratio_whatever_they_hold() -> None:
    batch = sampled([*R, 1.0], mask=[True, True, True, False])
    batch = batch.with_columns(None, behaviour_logp=torch.where(batch.mask, batch.behaviour_logp, -torch.inf))
    for level, expected in (("token", R), ("sequence", [1.2] * 3), ("geometric", [1.2 ** (1 / 3)] * 3)):
        ratio = mismatch_ratio(batch.old_logp, batch.behaviour_logp, batch.layout, batch.mask, level)
        close(ratio, [*expected, 1.0])
    assert MismatchWeight(normalised=True).weight(batch).isfinite().all()


def test_long_products_do_not_overflow() -> None:
    batch = sampled([50.0] * 400)
    assert float(MismatchWeight(level="sequence", cap=math.inf).weight(batch)[0]) == pytest.approx(math.exp(20))


def test_nothing_kept_is_a_loss_of_zero() -> None:
    batch = live(sampled(), sampled().old_logp)
    closed = batch.with_columns(None, advantage=corrected(MismatchGate(low=100.0, high=200.0)))
    value, gradient = value_and_gradient(Clipped(), closed)
    assert value.tolist() == [0.0] * 3
    assert not bool((gradient != 0).any())
    assert not bool(Clipped().active(closed).any())


# d = log mu - log pi_old = -log r; k2 of 1.5, 0.2, 4: 0.0822, 1.2951, 0.9609; k3: 0.0945, 0.8094, 1.6137
@pytest.mark.parametrize(
    ("part", "kept"),
    [
        (DivergenceGate("k2", "token", 0.97), [1, 0, 1]),
        (DivergenceGate("k3", "token", 0.97), [1, 1, 0]),
        (DivergenceGate("k1", "token", 0.01), [1, 0, 1]),
        (DivergenceGate("k3", "sum", 2.6), [1, 1, 1]),
        (DivergenceGate("k3", "sum", 2.5), [0, 0, 0]),
        (DivergenceGate("k3", "mean", 0.85), [1, 1, 1]),
        (DivergenceGate("k3", "mean", 0.83), [0, 0, 0]),
        (DivergenceGate("k3", "max", 1.62), [1, 1, 1]),
        (DivergenceGate("k3", "max", 1.61), [0, 0, 0]),
    ],
)
def test_divergence_gates_by_hand(part: DivergenceGate, kept: list[int]) -> None:
    close(corrected(part), kept)


def test_bypass_reinforce_keeps_its_weight_out_of_the_gradient() -> None:
    """Old log-probs taken from the sampler: -sg[min(pi/mu, C)] A log pi is the clipped weight with cap C."""
    batch = sampled([1.0] * 3)
    batch = live(batch, batch.behaviour_logp + tensor([0.2, -0.3, 1.5]))
    _, detached = value_and_gradient(ClippedWeight(cap=2.0), batch)
    weight = (batch.logp - batch.behaviour_logp).exp().clamp(max=2.0)
    close(detached, -weight.detach())
    (attached,) = torch.autograd.grad((-weight * batch.logp).sum(), batch.logp)
    assert float((attached - detached).abs().max()) > 0.1


def test_bypass_does_not_count_the_mismatch_twice() -> None:
    batch = sampled().with_columns(None, old_logp=sampled().behaviour_logp)
    assert torch.equal(corrected(MismatchWeight(level="token", cap=9.0), batch=batch), batch.advantage)


def test_exact_weights_make_the_score_function_unbiased() -> None:
    """Enumerated over four arms: E_mu[r A grad log pi] is the on-policy gradient; without r it is not."""
    logits = tensor([0.3, -0.2, 0.9, 0.1]).requires_grad_()
    mu, reward = tensor([0.4, 0.3, 0.2, 0.1]), tensor([1.0, 0.0, -0.5, 2.0])
    logp = logits.log_softmax(0)
    batch = batch_of([1] * 4, old_logp=logp.detach(), behaviour_logp=mu.log(), advantage=reward)

    def gradient(advantage: Tensor) -> Tensor:
        loss = ScoreFunction()(batch.with_columns(None, logp=logp, advantage=advantage))
        return torch.autograd.grad((mu * loss).sum(), logits, retain_graph=True)[0]

    (exact,) = torch.autograd.grad(-(logits.softmax(0) * reward).sum(), logits)
    close(gradient(MismatchWeight(cap=math.inf)(batch)), exact)
    assert float((gradient(reward) - exact).abs().max()) > 0.05


def test_what_is_measured_by_hand() -> None:
    assert MismatchGate(low=0.5).measure(sampled())["mismatch/dropped"] == pytest.approx(1 / 3)
    assert DivergenceGate("k3", "token", 0.97).measure(sampled())["mismatch/dropped"] == pytest.approx(1 / 3)
    measured = MismatchWeight(cap=2.0).measure(sampled())
    assert measured["mismatch/weight"] == pytest.approx(3.7 / 3)
    assert measured["mismatch/weight_max"] == 2.0
    assert measured["mismatch/kl"] == pytest.approx(-math.log(1.2) / 3)
    assert measured["mismatch/effective"] == pytest.approx(3.7**2 / (3 * (1.5**2 + 0.2**2 + 4)))
    nobody = sampled(mask=[False] * 3)
    assert [p.measure(nobody) for p in (MismatchGate(), MismatchWeight(), DivergenceGate())] == [{}, {}, {}]


def test_equal_weights_are_all_effective() -> None:
    close(effective_share(torch.full((7,), 0.3, dtype=DOUBLE)), tensor(1.0))
    close(effective_share(tensor([1.0, 0.0, 0.0, 0.0])), tensor(0.25))


@pytest.mark.parametrize(
    "make",
    [
        lambda: MismatchWeight(level="prompt"),
        lambda: MismatchWeight(cap=1.0, floor=2.0),
        lambda: MismatchGate(low=2.0, high=1.0),
        lambda: DivergenceGate(over="median"),
        lambda: DivergenceGate(estimator="k9"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]
