"""PIPO's gate, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.judge import judge, loss, weigh
from unipo.layout import Layout
from unipo.parts.advantage import WhitenedReturn
from unipo.parts.guard import ImprovementGate, group_share, improvement
from unipo.parts.objective import Clipped
from unipo.parts.surrogate import CappedSurrogate
from unipo.registry import get_method

PIPO = get_method("pipo")
WINDOW = [0.40, 0.42, 0.41, 0.45]


def now(mu: float | None, window: list[float], key: str = "improvement_gate") -> Batch:
    return replace(Batch(Layout.of([1])), sampled_reward=mu, states={key: {"window": window}})


def before(advantage: list[float], sizes: list[int], scored: list[bool] | None = None) -> Batch:
    """A stored batch of one-token responses."""
    n = len(advantage)
    value = torch.tensor(advantage, dtype=torch.float64)
    counted = torch.tensor(scored or [True] * n)
    return Batch.of(
        Layout.of([1] * n, sizes),
        sequence_advantage=value,
        advantage=value,
        scored=counted,
        mask=counted,
        old_logp=torch.log(torch.full((n,), 0.5, dtype=torch.float64)),
    )


def asked(gate: ImprovementGate, mu: float, window: list[float], stored: Batch) -> Tensor:
    value = gate(now(mu, window), stored)
    assert value is not None
    return value


def test_improvement_is_counted_in_sample_deviations_of_the_window() -> None:
    # mean .42; squares (.02^2 + 0 + .01^2 + .03^2)/3 = .0014/3, root .0216025
    gate = ImprovementGate(window=4)
    assert gate.improvement(now(0.47, WINDOW)) == pytest.approx(2.3146, abs=1e-4)
    assert gate.improvement(now(0.38, WINDOW)) == pytest.approx(-1.8516, abs=1e-4)
    assert improvement(0.47, WINDOW)[1] == pytest.approx(0.021602, abs=1e-6)


def test_a_group_shares_its_size_by_absolute_advantage() -> None:
    stored = before([1.5, -0.5, -0.5, -0.5], [4])
    share = group_share(stored.sequence_advantage, stored.layout, stored.scored)
    torch.testing.assert_close(share, torch.tensor([2.0, -2 / 3, -2 / 3, -2 / 3], dtype=torch.float64))
    gate = ImprovementGate(window=4)
    torch.testing.assert_close(asked(gate, 0.47, WINDOW, stored), 2.314550249 * share)
    torch.testing.assert_close(asked(gate, 0.38, WINDOW, stored), -0.1851640199 * share)


@given(st.lists(st.floats(-9, 9), min_size=8, max_size=8), st.floats(-2, 2).filter(bool))
def test_shares_add_up_to_the_group_and_signs_follow_the_improvement(values: list[float], xi: float) -> None:
    stored = before(values, [4, 4])
    share = group_share(stored.sequence_advantage, stored.layout, stored.scored)
    total = stored.layout.group_sum(stored.sequence_advantage.abs())
    expected = torch.where(total > 0, 4.0, 0.0).double()
    torch.testing.assert_close(stored.layout.group_sum(share.abs()), expected)
    push = ImprovementGate(window=2)(now(xi, [-1.0, 1.0]), stored)
    assert push is not None
    agree = torch.sign(push) == torch.sign(stored.advantage) * (1 if xi > 0 else -1)
    assert bool((agree | (push == 0)).all())


def test_a_group_without_advantage_gets_exactly_nothing_and_the_unscored_do_not_count() -> None:
    stored = before([0.0, 0.0, 1.0, -1.0, 5.0], [2, 3], [True, True, True, True, False])
    share = group_share(stored.sequence_advantage, stored.layout, stored.scored)
    assert share.tolist() == [0.0, 0.0, 1.0, -1.0, 0.0]
    assert asked(ImprovementGate(window=4), 0.47, WINDOW, stored)[[0, 1, 4]].tolist() == [0.0, 0.0, 0.0]


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.floats(-1, 1), st.floats(0.1, 10), st.floats(-5, 5))
def test_improvement_does_not_see_the_scale_of_the_reward(
    window: list[float], mu: float, slope: float, shift: float
) -> None:
    gap, deviation = improvement(mu, window)
    if deviation < 1e-3:
        return
    moved_gap, moved = improvement(slope * mu + shift, [slope * w + shift for w in window])
    assert moved_gap / moved == pytest.approx(gap / deviation, abs=1e-6)


def test_the_push_is_continuous_where_the_improvement_changes_sign() -> None:
    stored = before([1.0, -1.0], [2])
    for mu in (0.42 + 1e-9, 0.42 - 1e-9):
        assert float(asked(ImprovementGate(window=4), mu, WINDOW, stored).abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("mu", "window"), [(0.5, [0.0, 1.0]), (0.9, [0.5]), (0.9, []), (0.9, [0.1, 0.1]), (None, [0.0, 1.0])]
)
def test_nothing_is_asked_without_a_full_window_a_spread_and_a_difference(
    mu: float | None, window: list[float]
) -> None:
    assert ImprovementGate(window=2)(now(mu, window), before([1.0, -1.0], [2])) is None


def test_nothing_is_asked_before_there_is_a_batch_before() -> None:
    assert ImprovementGate(window=2)(now(0.9, [0.0, 0.5]), None) is None
    assert ImprovementGate(window=2, backward=0.0)(now(-0.9, [0.0, 0.5]), before([1.0, -1.0], [2])) is None


def test_the_window_holds_the_last_means_in_order() -> None:
    gate = ImprovementGate(window=3)
    states: dict[str, dict[str, list[float]]] = {}
    for mu in (1.0, 2.0, None, 3.0, 4.0):
        batch = replace(now(mu, []), states=states)
        states = {gate.state_key: dict(gate.remember(batch))}
    assert states[gate.state_key] == {"window": [2.0, 3.0, 4.0]}


def test_the_released_window_holds_each_mean_twice_and_the_present_one_already() -> None:
    gate = ImprovementGate(window=4, inclusive=True)
    assert gate.improvement(now(0.7, [])) == 0.0
    kept = gate.remember(now(0.7, []))
    assert kept == {"window": [0.7, 0.7]}
    # window [.7, .7, 1.0]: mean .8, population deviation sqrt((.01 + .01 + .04)/3) = .141421
    assert gate.improvement(now(1.0, [0.7, 0.7])) == pytest.approx(0.2 / 0.1414214, abs=1e-5)
    assert gate.remember(now(1.0, [0.6, 0.6, 0.7, 0.7])) == {"window": [0.7, 0.7, 1.0, 1.0]}
    assert gate.improvement(now(0.7, [0.7, 0.7])) == 0.0  # without a spread it divides by 1


def test_the_released_bounds() -> None:
    stored = before([1.0, -1.0], [2])
    far = ImprovementGate(window=2, largest_gap=5.0, largest_push=3.0, backward=0.5)
    assert far.improvement(now(100.0, [0.0, 2.0])) == pytest.approx(5 / 2**0.5)
    assert asked(far, 100.0, [0.0, 2.0], stored).tolist() == [3.0, -3.0]
    assert asked(far, -100.0, [0.0, 2.0], stored).tolist() == [-1.5, 1.5]


def test_credit_inside_a_response_is_kept() -> None:
    base = before([2.0, -2.0], [2])
    stored = Batch.of(
        Layout.of([2, 1], [2]),
        sequence_advantage=base.sequence_advantage,
        advantage=torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64),
        scored=base.scored,
        mask=torch.tensor([True, True, True]),
    )
    push = asked(ImprovementGate(window=2), 1.0 + 2**0.5, [0.0, 2.0], stored)  # xi = 1, a = A/2
    torch.testing.assert_close(push, torch.tensor([0.5, 1.5, -1.0], dtype=torch.float64))


def test_plain_attribution_takes_the_advantages_as_they_are() -> None:
    stored = before([3.0, -1.0], [2]).without("sequence_advantage")
    gate = ImprovementGate(window=2, attribution="plain")
    push = asked(gate, 1.0 + 2**0.5, [0.0, 2.0], stored)
    torch.testing.assert_close(push, torch.tensor([3.0, -1.0], dtype=torch.float64))


def test_on_an_unchanged_policy_the_extra_update_is_a_scaled_reinforce_step() -> None:
    """rho = 1: the gradient is phi times that of sum a_i log pi, here per token 1/N, N = 4."""
    stored = before([1.5, -0.5, -0.5, -0.5], [4])
    for mu, phi in ((0.47, 2.314550249), (0.38, -0.1851640199)):
        gate = ImprovementGate(window=4)
        method = PIPO.but(guard=gate).replay
        again = weigh(method, stored.with_columns(None, advantage=asked(gate, mu, WINDOW, stored)))
        logp = stored.old_logp.clone().requires_grad_()
        loss(method, again.with_columns(None, logp=logp)).total.backward()  # type: ignore[no-untyped-call]
        share = group_share(stored.sequence_advantage, stored.layout, stored.scored)
        torch.testing.assert_close(logp.grad, -phi * share / 4)


# -- composition ---------------------------------------------------------------------------------------
def test_the_extra_update_is_one_step_of_the_methods_own_surrogate() -> None:
    method = PIPO.but(**{"source.minibatches": 2, "source.epochs": 3})
    assert (method.replay.source.updates, method.replay.objective, method.replay.regularisers) == (1, Clipped(), ())
    assert method.replay.guard is None
    other = PIPO.but(**{"guard.objective": CappedSurrogate(cap=1.2)})
    assert other.replay.objective == CappedSurrogate(cap=1.2)
    assert other.objective == PIPO.objective
    assert "l_it = -min(rho_it, 1.2) A_it" in other.explain()


@pytest.mark.parametrize("base", ["dapo", "gspo", "dr-grpo", "cispo", "cepo"])
def test_it_wraps_any_method_that_compares_responses(base: str) -> None:
    method = get_method(base).but(name="wrapped", guard=ImprovementGate())
    assert method.replay.objective == get_method(base).objective
    assert method.explain().splitlines()[-1].startswith("guard")


def test_what_cannot_be_shared_in_a_group_is_refused() -> None:
    with pytest.raises(ConfigError, match="ImprovementGate needs one advantage per response, and WhitenedReturn gives"):
        get_method("reinforce++").but(guard=ImprovementGate())
    plain = get_method("reinforce++").but(guard=ImprovementGate(attribution="plain"))
    assert isinstance(plain.advantage, WhitenedReturn)
    with pytest.raises(ConfigError, match=r"ImprovementGate .guard. needs column 'reward'; the source Dem"):
        get_method("sft").but(guard=ImprovementGate())


@pytest.mark.parametrize("wrong", [{"window": 1}, {"backward": 2.0}, {"attribution": "token"}, {"largest_gap": 0.0}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="ImprovementGate"):
        ImprovementGate(**wrong)  # type: ignore[arg-type]


def test_the_mean_reward_is_taken_before_shaping() -> None:
    batch = Batch.of(
        Layout.of([1, 1, 1], [3]),
        tokens=torch.tensor([1, 2, 3]),
        trainable=torch.ones(3, dtype=torch.bool),
        scored=torch.tensor([True, True, False]),
        reward=torch.tensor([1.0, 0.0, float("nan")], dtype=torch.float64),
        truncated=torch.zeros(3, dtype=torch.bool),
    )
    method = get_method("dr-grpo").bound_to(4)
    assert judge(method, batch).sampled_reward == 0.5
    assert judge(method, replace(batch, sampled_reward=0.25)).sampled_reward == 0.25
