"""The value model's target and loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import batch_of, close, tensor

from unipo.batch import Batch
from unipo.check import check_objective
from unipo.errors import ConfigError
from unipo.judge import judge
from unipo.parts.selection import FreshTokens, LeaveWindowEnd
from unipo.parts.value import ValueLearning, ValueTokens, clipped_value_loss
from unipo.registry import get_method


def test_squared_error_and_its_clip_worked_out_by_hand() -> None:
    value, old, target = tensor([0.5, 0.9, 0.1, 0.5]), tensor([0.5, 0.5, 0.5, 0.2]), tensor([1.0, 1.0, 1.0, 0.0])
    # plain: .25, .01, .81, .25;  at most .2 from old: .5, .7, .3, .4 -> .25, .09, .49, .16
    torch.testing.assert_close(clipped_value_loss(value, old, target, 0.2), tensor([0.125, 0.045, 0.405, 0.125]))
    torch.testing.assert_close(clipped_value_loss(value, old, target, None), tensor([0.125, 0.005, 0.405, 0.125]))


def test_gradient_is_zero_exactly_where_the_clipped_branch_wins_beyond_the_range() -> None:
    value = tensor([0.5, 0.9, 0.1, 0.5]).requires_grad_()
    old, target = tensor([0.5, 0.5, 0.5, 0.2]), tensor([1.0, 1.0, 1.0, 0.0])
    (gradient,) = torch.autograd.grad(clipped_value_loss(value, old, target, 0.2).sum(), value)
    torch.testing.assert_close(gradient, tensor([-0.5, 0.0, -0.9, 0.5]))


def learned(part: ValueLearning, **columns: object) -> Batch:
    given = {"reward": [1.0, 0.0], "value": [0.2, 0.3, 0.5, 0.4, 0.6], "token_reward": [0.0] * 5}
    batch = batch_of([3, 2], **(given | columns))
    return batch.with_columns(None, returns=part.returns(batch))


def test_returns_at_lambda_one_are_the_reward_everywhere() -> None:
    assert learned(ValueLearning(lam=1.0)).returns.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_returns_are_advantage_plus_value_before_whitening() -> None:
    # first response as in test_gae at .95; second: deltas .2, -.6;  -.6;  .2 - .57 = -.37
    expected = tensor([0.94125, 0.975, 1.0, 0.03, 0.0])
    torch.testing.assert_close(learned(ValueLearning(lam=0.95)).returns, expected, rtol=0, atol=1e-12)


def test_only_finished_responses_are_learned_from_and_then_all_their_tokens() -> None:
    part = ValueLearning(lam=1.0, finished=True)
    late = torch.tensor([False, False, True, False, True])  # tokens of this step
    batch = learned(part, mask=late, unfinished=[False, True])
    assert part.active(batch).tolist() == [True, True, True, False, False]
    assert batch.returns.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    torch.testing.assert_close(part.average.weights(batch), tensor([1 / 3] * 3 + [0, 0]))


def test_nothing_to_learn_from_has_weight_zero_not_nan() -> None:
    part = ValueLearning(lam=1.0, finished=True)
    batch = learned(part, unfinished=[True, True])
    assert part.average.weights(batch).tolist() == [0.0] * 5


@pytest.mark.parametrize("part", [ValueLearning(), ValueLearning(clip=None, lam=1.0), ValueLearning(clip=0.05)])
def test_it_keeps_what_every_objective_keeps(part: ValueLearning) -> None:
    assert check_objective(part, average=part.average).passed


def test_its_average_is_named_in_the_formula() -> None:
    assert ValueTokens(True).formula() in ValueLearning(finished=True).formula()
    assert "max((V - G)^2" in ValueLearning().formula()
    assert "max((V - G)^2" not in ValueLearning(clip=None).formula()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"clip": 0.0}, "clip must be positive"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"schedule": "steps"}, "constant, linear or cosine"),
        ({"shared": True, "pretrain": 3}, "leave them out, or set shared=false"),
        ({"lam": -0.1}, "must lie in"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ValueLearning(**settings)  # type: ignore[arg-type]


def going_on(values: list[float], **columns: Any) -> Batch:
    """One response that was cut off, with these values and nothing earned."""
    n = len(values)
    return batch_of(
        [n], reward=[0.0], value=values, token_reward=[0.0] * n, trainable=[True] * n, fresh=[True] * n,
        unfinished=[True], truncated=[True], **columns,
    )  # fmt: skip


def test_a_token_left_out_at_the_end_keeps_its_value_for_those_before_it() -> None:
    # deltas 0.1, 0.2, 0.4, 0; lam 0.95: 0.651, 0.58, 0.4, 0.  Cut before the estimate it would be 0.29, 0.2, 0.
    method = get_method("t-ppo").but(
        shaping=(), selection=(FreshTokens(), LeaveWindowEnd(last=1)), **{"advantage.whiten": False}
    )
    judged = judge(method, going_on([0.2, 0.3, 0.5, 0.9]))
    close(judged.advantage[:3], [0.651, 0.58, 0.4])
    assert judged.mask.tolist() == [True, True, True, False]


def test_the_value_models_target_goes_on_where_the_advantage_does() -> None:
    # A = 0.1 + 0.95 * 0.2, 0.2, 0; G = A + V.  As an end with reward 0 it would be 0.03875, 0.025, 0.
    on = {"advantage.goes_on": "truncated", "value.goes_on": "truncated", "advantage.whiten": False}
    method = get_method("ppo").but(shaping=(), **on)
    judged = judge(method, going_on([0.2, 0.3, 0.5]))
    close(judged.advantage, [0.29, 0.2, 0.0])
    close(judged.returns, [0.49, 0.5, 0.5])
    with pytest.raises(ConfigError, match="the value model learns with goes_on='none'"):
        get_method("ppo").but(**{"advantage.goes_on": "truncated"})
    with pytest.raises(ConfigError, match=r"set value\.goes_on=unfinished, or value\.finished=true"):
        get_method("t-ppo").but(**{"value.finished": False})


def test_learning_from_finished_responses_excuses_those_that_are_unfinished_alone() -> None:
    # A response cut off for good is finished: the value model would be taught its end, whatever `finished` says.
    with pytest.raises(ConfigError, match=r"set value\.goes_on=truncated$"):
        get_method("ppo").but(**{"advantage.goes_on": "truncated"})
    with pytest.raises(ConfigError, match=r"set value\.goes_on=truncated$"):
        get_method("t-ppo").but(**{"advantage.goes_on": "truncated"})
    with pytest.raises(ConfigError, match=r"set value\.goes_on=unfinished$"):
        get_method("t-ppo").but(**{"value.goes_on": "truncated"})
    for goes_on in ("none", "unfinished"):
        method = get_method("t-ppo").but(**{"value.goes_on": goes_on})
        assert method.value is not None
        assert method.value.finished


def test_the_formula_says_after_which_responses_a_value_follows() -> None:
    assert "V(s_end)" not in ValueLearning().formula()
    for goes_on in ("unfinished", "truncated"):
        assert f"d_t+k,  V(s_end) = V(s_last) where {goes_on}," in ValueLearning(goes_on=goes_on).formula()


def test_while_the_value_is_zero_whitening_moves_all_unfinished_tokens_alike() -> None:
    batch = batch_of(
        [1, 2], reward=[1.0, 0.0], value=[0.0] * 3, token_reward=[0.0] * 3, trainable=[True] * 3, fresh=[True] * 3,
        unfinished=[False, True], truncated=[False, True],
    )  # fmt: skip
    advantage = judge(get_method("t-ppo").but(shaping=()), batch).advantage
    # 1, 0, 0: mean 1/3, unbiased variance 1/3
    close(advantage, [2 / 3 * 3**0.5, -(3**0.5) / 3, -(3**0.5) / 3], 1e-7)
