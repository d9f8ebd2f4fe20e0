"""PPO: what it becomes in its limits, and the value model's gradient under any cut."""

from __future__ import annotations

import pytest
import torch
from bigram import Bigram, Spoiling, random_rollout
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.judge import judge, loss, provide_for_loss, required_tokens, weigh
from unipo.layout import Layout
from unipo.method import Method, diff
from unipo.parts.gae import GAE
from unipo.parts.selection import FreshTokens, LeaveWindowEnd
from unipo.parts.value import ValueLearning
from unipo.registry import catalogue, get_method
from unipo.training.setting import changed

LEARNERS = [m for m in catalogue().values() if m.value is not None]
SHARED = get_method("ppo").but(**{"value.shared": True, "value.coefficient": 0.1})
every_learner = pytest.mark.parametrize("method", [*LEARNERS, SHARED], ids=lambda m: f"{m.name}-{m.value.shared}")


class Constant(Bigram):
    """A value model that expects the same of every token."""

    def value(self, batch: Batch) -> Tensor:
        return torch.full((batch.layout.n_tokens,), 0.3, dtype=torch.float64)


def judged(method: Method, seed: int, scorer: type[Bigram] = Bigram) -> tuple[Bigram, Batch]:
    policy = scorer(seed)
    batch = random_rollout(seed, method.source.group)
    batch = batch.without(*(set(batch.columns) - set(method.source.adds)))
    return policy, judge(method, batch, policy)


@pytest.mark.parametrize("seed", range(3))
def test_with_a_constant_value_and_lambda_one_ppo_is_reinforce_plus_plus(seed: int) -> None:
    """Before whitening A = R - c; the shift goes with the mean."""
    ppo = get_method("ppo").but(shaping=(), **{"advantage.lam": 1.0})
    plus_plus = get_method("reinforce++").but(**{"advantage.beta": 0.0})
    (_, a), (_, b) = judged(ppo, seed, Constant), judged(plus_plus, seed)
    assert float(a.advantage.abs().max()) > 0.1
    torch.testing.assert_close(a.advantage, b.advantage, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_kl_in_the_token_rewards_is_that_of_reinforce_plus_plus(seed: int) -> None:
    ppo = get_method("ppo").but(**{"advantage.lam": 1.0, "shaping.0.beta": 0.2})
    plus_plus = get_method("reinforce++").but(**{"advantage.beta": 0.2})
    (_, a), (_, b) = judged(ppo, seed, Constant), judged(plus_plus, seed)
    torch.testing.assert_close(a.advantage, b.advantage, rtol=0, atol=1e-10)


def value_gradient(method: Method, policy: Bigram, batch: Batch) -> tuple[Tensor, Tensor]:
    """(weighted value loss, its gradient) of a batch that carries its weights."""
    assert method.value is not None
    live = policy.live(batch)
    total = (method.value(live) * getattr(live, "weight.value")).sum()
    return total.detach(), torch.autograd.grad(total, policy.theta)[0]


def ready(method: Method, seed: int, scorer: type[Bigram] = Bigram) -> tuple[Bigram, Batch]:
    assert method.value is not None
    policy, batch = judged(method, seed, scorer)
    weight = method.value.average.weights(batch)
    return policy, batch.with_columns("token", **{"weight.value": weight})


@every_learner
@pytest.mark.parametrize("seed", [0, 1])
def test_the_value_gradient_does_not_depend_on_the_cut(method: Method, seed: int) -> None:
    policy, batch = ready(method, seed)
    whole = value_gradient(method, policy, batch)
    assert float(whole[1].abs().max()) > 1e-4
    for pieces in ([*batch.split_by_tokens(1)], [*batch.split_by_tokens(9)], batch.split_prompts(2)):
        parts = [value_gradient(method, policy, piece) for piece in pieces]
        for k in (0, 1):
            torch.testing.assert_close(torch.stack([p[k] for p in parts]).sum(0), whole[k], rtol=1e-10, atol=1e-10)


@every_learner
def test_tokens_that_do_not_count_never_reach_the_value_loss(method: Method) -> None:
    assert method.value is not None
    policy, batch = ready(method, 0)
    _, spoiled = ready(method, 0, Spoiling)
    off = ~method.value.active(spoiled)
    assert bool(off.any())
    for name in ("value", "token_reward"):
        spoiled = spoiled.with_columns(None, **{name: torch.where(off, float("nan"), getattr(spoiled, name))})
    ours, theirs = value_gradient(method, policy, batch), value_gradient(method, policy, spoiled)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_shared_backbone_gets_the_policys_gradient_plus_the_values(seed: int) -> None:
    own = get_method("ppo")
    totals = []
    for method in (own, SHARED):
        policy, batch = ready(method, seed)
        batch = weigh(method, provide_for_loss(method, batch, policy))
        totals.append(torch.autograd.grad(loss(method, policy.live(batch)).total, policy.theta)[0])
    apart = value_gradient(own, *ready(own, seed))[1]
    torch.testing.assert_close(totals[1], totals[0] + 0.1 * apart, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("budget", [1, 9])
def test_a_shared_method_sums_over_micro_batches(budget: int) -> None:
    policy, batch = judged(SHARED, 0)
    batch = weigh(SHARED, provide_for_loss(SHARED, batch, policy))
    whole = torch.autograd.grad(loss(SHARED, policy.live(batch)).total, policy.theta)[0]
    pieces = [
        torch.autograd.grad(loss(SHARED, policy.live(piece)).total, policy.theta)[0]
        for piece in batch.split_by_tokens(budget)
    ]
    torch.testing.assert_close(torch.stack(pieces).sum(0), whole, rtol=1e-10, atol=1e-10)
    assert bool((required_tokens(SHARED, batch) == batch.mask).all())


class Untrained(Bigram):
    """A value model that has learned nothing yet."""

    def value(self, batch: Batch) -> Tensor:
        return torch.zeros(batch.layout.n_tokens, dtype=torch.float64)


def windowed(scorer: type[Bigram], all_unfinished: bool, **changes: object) -> Batch:
    method = get_method("t-ppo").but(**changes)
    batch = random_rollout(0, method.source.group)
    if all_unfinished:
        batch = batch.with_columns(
            None, unfinished=torch.ones_like(batch.unfinished), truncated=torch.zeros_like(batch.truncated)
        )
    return judge(method, batch.without(*(set(batch.columns) - set(method.source.adds))), scorer(0))


@pytest.mark.parametrize("scorer", [Untrained, Constant])
def test_a_value_that_says_the_same_everywhere_teaches_unfinished_responses_nothing(scorer: type[Bigram]) -> None:
    batch = windowed(scorer, all_unfinished=True)
    assert bool(batch.mask.any())
    assert not bool((batch.advantage != 0).any())
    mixed = windowed(scorer, False, **{"advantage.whiten": False})
    unfinished = batch.layout.to_tokens(mixed.unfinished)
    assert float(mixed.advantage[unfinished].abs().max()) < 1e-12
    assert bool((mixed.advantage[~unfinished] != 0).any())


def test_policy_and_value_model_learn_from_different_tokens() -> None:
    batch = windowed(Bigram, False)
    value = get_method("t-ppo").value
    assert value is not None
    finished = batch.layout.to_tokens(~batch.unfinished & batch.scored)
    assert torch.equal(value.active(batch), batch.trainable & finished)
    assert torch.equal(batch.mask, batch.trainable & batch.fresh & batch.layout.to_tokens(batch.scored))
    reward = batch.layout.to_tokens(torch.where(batch.scored, batch.reward, 0.0))
    torch.testing.assert_close(batch.returns[value.active(batch)], reward[value.active(batch)], rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_with_everything_fresh_and_finished_t_ppo_is_ppo_with_a_monte_carlo_target(seed: int) -> None:
    t_ppo = get_method("t-ppo").but(shaping=())
    ppo = get_method("ppo").but(shaping=(), **{"value.lam": 1.0})
    policy = Bigram(seed)
    batch = random_rollout(seed, 1)
    batch = batch.with_columns(None, fresh=torch.ones_like(batch.fresh), unfinished=torch.zeros_like(batch.unfinished))
    a, b = (judge(m, batch, policy) for m in (t_ppo, ppo))
    assert torch.equal(a.advantage, b.advantage)
    assert torch.equal(a.returns, b.returns)


def test_the_last_tokens_of_a_window_can_be_left_out() -> None:
    part = LeaveWindowEnd(last=2)
    layout = Layout.of([4, 4])
    batch = Batch.of(
        layout,
        fresh=torch.tensor([False, True, True, True, True, True, True, True]),
        unfinished=torch.tensor([True, False]),
    )
    assert part(batch).tolist() == [True, True, False, False, True, True, True, True]
    assert FreshTokens()(batch).tolist() == batch.fresh.tolist()
    with pytest.raises(ConfigError, match="last must not be negative"):
        LeaveWindowEnd(last=-1)


def test_methods_without_a_value_model_never_ask_for_one() -> None:
    for method in catalogue().values():
        if method.value is None:
            assert not method.needs & {"value", "returns", "live_value"}


def test_settings_are_reached_by_path_and_the_difference_is_named() -> None:
    ppo = get_method("ppo")
    other = changed(ppo, {"value.clip": None, "value.learning_rate": "2e-5", "value.shared": True})
    assert {c.path: c.after for c in diff(ppo, other)} == {
        "value.clip": None,
        "value.learning_rate": 2e-5,
        "value.shared": True,
    }
    assert changed(ppo, {"value": "ValueLearning(clip=0.5)"}).value == ValueLearning(clip=0.5)
    assert changed(ppo, {"value": None, "advantage": "Raw()"}).value is None
    with pytest.raises(ConfigError, match="clip"):
        changed(ppo, {"value.clipp": 0.1})
    assert "V_old" in ppo.explain()


def test_a_value_without_an_advantage_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs column 'reward'"):
        get_method("sft").but(value=ValueLearning())


def test_returns_of_grpo_with_a_value_model_need_no_gae() -> None:
    """A value model beside any other advantage: learned, and read by nobody but itself."""
    method = get_method("grpo").but(value=ValueLearning(lam=1.0), regularisers=())
    _, batch = judged(method, 0)
    reward = batch.layout.to_tokens(torch.where(batch.scored, batch.reward, 0.0))
    torch.testing.assert_close(batch.returns[batch.mask], reward[batch.mask], rtol=0, atol=1e-12)
    assert not isinstance(method.advantage, GAE)
