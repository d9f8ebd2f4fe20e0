"""DisCO: right above wrong, and the one-sided region."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import DOUBLE, batch_of, central_differences, close, live, tensor, value_and_gradient
from torch import Tensor

from unipo.batch import Batch
from unipo.check import check_objective
from unipo.errors import ConfigError
from unipo.judge import with_prepared
from unipo.layout import Layout
from unipo.parts.average import GroupMean, TokenMean
from unipo.parts.discriminative import Discriminative, HingeKL, group_log_mean_exp

SCORES = [-0.5, -1.0, -0.8, -1.5]
REWARDS = [1.0, 1.0, 0.0, 0.0]


def question(
    scores: list[float] | Tensor = SCORES, rewards: list[float] = REWARDS, sizes: list[int] | None = None
) -> Batch:
    """One-token responses, so that a score is a log-prob."""
    return batch_of([1] * len(rewards), sizes or [len(rewards)], logp=tensor(scores), reward=rewards)


@pytest.mark.parametrize(
    ("tau", "value", "weights"),
    [(math.inf, 0.4, [0.5, 0.5]), (1.0, 0.339961, [0.668188, 0.331812]), (1e6, 0.4, [0.5, 0.5]), (1e-3, -0.75 + 0.8 + 1e-3 * math.log(2), [1.0, 0.0])],
)  # fmt: skip
def test_value_and_weights_by_hand(tau: float, value: float, weights: list[float]) -> None:
    # mean of P -0.75; N -0.8, -1.5: their mean -1.15, or the hardest at tau -> 0
    loss, gradient = value_and_gradient(Discriminative(tau=tau), question())
    close(loss, [-value], 1e-5)
    close(gradient, [-0.5, -0.5, *weights], 1e-5)


def test_the_gradient_by_differences() -> None:
    part = Discriminative(tau=0.7)

    def loss(logp: Tensor) -> Tensor:
        return part(question().with_columns(None, logp=logp)).sum()

    close(value_and_gradient(part, question())[1], central_differences(loss, tensor(SCORES)), 1e-7)


@pytest.mark.parametrize("p", [1, 4, 7])
@pytest.mark.parametrize("tau", [1.0, math.inf])
def test_every_question_weighs_the_same_whatever_its_success_rate(p: int, tau: float) -> None:
    scores = torch.linspace(-2, -0.2, 8, dtype=DOUBLE)
    _, gradient = value_and_gradient(Discriminative(tau=tau), question(scores, [1.0] * p + [0.0] * (8 - p)))
    close(gradient.abs().sum(), tensor(2.0))


def test_a_constant_on_all_scores_changes_nothing() -> None:
    part = Discriminative(tau=0.5)
    moved = question([s + 3 for s in SCORES])
    close(part(moved), part(question()))


def ratios(lengths: list[int], ratio: list[float], rewards: list[float]) -> Batch:
    old = -torch.ones(sum(lengths), dtype=DOUBLE)
    return batch_of(lengths, [len(lengths)], logp=old + tensor(ratio).log(), old_logp=old, reward=rewards)


def test_at_the_old_policy_both_scores_agree_and_hardness_does_not_matter() -> None:
    batch = ratios([2, 1, 3], [1.0] * 6, [1.0, 0.0, 0.0])
    plain = [value_and_gradient(Discriminative(score=s, tau=math.inf), batch)[1] for s in ("log", "ratio")]
    close(plain[0], plain[1])
    close(value_and_gradient(Discriminative(score="ratio", tau=1.0), batch)[1], plain[1])


def test_scores_are_means_over_tokens() -> None:
    # ratios 1.2 and 0.8 -> 1; 1.5; the wrong one is higher by 0.5
    batch = ratios([2, 1], [1.2, 0.8, 1.5], [1.0, 0.0])
    value, gradient = value_and_gradient(Discriminative(score="ratio", tau=math.inf), batch)
    close(value, [0.5])
    close(gradient, [-0.6, -0.4, 1.5])


def test_questions_without_both_sides_give_nothing_and_stay_in_the_denominator() -> None:
    batch = question([*SCORES, -0.1, -0.2, -0.3, -0.4], [*REWARDS, 1.0, 1.0, 0.0, 0.5], [4, 2, 2])
    part = Discriminative(tau=math.inf)
    value, gradient = value_and_gradient(part, batch, GroupMean(count="all"))
    close(value, [-0.4, 0.0, 0.0])
    close(gradient, [-1 / 6, -1 / 6, 1 / 6, 1 / 6, 0, 0, 0, 0])
    assert part.active(batch).tolist() == [True] * 4 + [False] * 4


def test_unscored_empty_and_partly_right_responses_take_no_part() -> None:
    batch = batch_of(
        [1, 1, 1, 0, 1], [5], logp=[-0.5, -0.8, -9.0, -7.0], reward=[1.0, 0.0, 0.4, 1.0, float("nan")],
        scored=[True, True, True, True, False], mask=[True, True, True, False],
    )  # fmt: skip
    value, gradient = value_and_gradient(Discriminative(tau=2.0), batch)
    close(value, [0.5 - 0.8])
    close(gradient, [-1.0, 1.0, 0.0, 0.0])


def test_log_mean_exp_does_not_overflow_and_is_zero_for_nobody() -> None:
    layout = Layout.of([1] * 4, [3, 1])
    where = torch.tensor([True, True, False, False])
    close(group_log_mean_exp(tensor([900.0, 900.0, 5e3, 1.0]), layout, where), [900.0, 0.0])


# -- the region ------------------------------------------------------------------------------------------------
def moved(gap: list[float], delta: float = 0.1) -> Batch:
    """Tokens of two prompts whose old log-probs lie `gap` above the current ones."""
    now = -torch.ones(len(gap), dtype=DOUBLE)
    batch = batch_of([2, len(gap) - 2], [1, 1], logp=now, current_logp=now, old_logp=now + tensor(gap))
    return with_prepared(HingeKL(beta=1.0, delta=delta), batch)


def test_beyond_the_region_the_gradient_is_the_excess_times_that_of_the_kl() -> None:
    # K = (0.5 + 0.1 + 0 + 0.6) / 4 = 0.3, excess 0.2: loss 0.2 * 0.3, gradient -0.2/4 on every token
    batch = moved([0.5, 0.1, 0.0, 0.6])
    part = HingeKL(beta=1.0, delta=0.1)
    value, gradient = value_and_gradient(part, batch, TokenMean())
    close((value * TokenMean().weights(batch)).sum(), tensor(0.06))
    close(gradient, [-0.05] * 4)


@pytest.mark.parametrize("gap", [[0.0] * 4, [0.1] * 4, [-0.5, -0.5, 0.1, 0.1]])
def test_inside_the_region_the_gradient_is_exactly_zero_and_nothing_is_computed(gap: list[float]) -> None:
    batch = moved(gap, delta=0.1 + 1e-12)
    _, gradient = value_and_gradient(HingeKL(), batch)
    assert not bool((gradient != 0).any())
    assert not bool(HingeKL().active(batch).any())


def test_it_is_the_gradient_of_the_squared_hinge() -> None:
    old = tensor([-0.4, -0.7, -0.2])

    def squared(logp: Tensor) -> Tensor:
        return 500.0 * ((old - logp).mean() - 0.05).clamp(min=0) ** 2

    part, at = HingeKL(beta=1e3, delta=0.05), tensor([-0.5, -1.0, -0.3])
    batch = with_prepared(part, live(batch_of([3], old_logp=old, current_logp=at), at))
    _, gradient = value_and_gradient(part, batch, TokenMean())
    close(part.beta * gradient, central_differences(squared, at), 1e-5)


@pytest.mark.parametrize(
    "part",
    [
        Discriminative(right=0.3, wrong=0.2),
        Discriminative(tau=0.1, right=0.3, wrong=0.2),
        Discriminative(score="ratio", tau=1.0, right=0.3, wrong=0.2),
        Discriminative(tau=math.inf, right=0.3, wrong=0.2),
        HingeKL(),
        HingeKL(delta=100.0),
    ],
)
def test_the_objectives_pass_the_checker(part: Discriminative | HingeKL) -> None:
    assert check_objective(part).passed


def test_settings_that_mean_nothing_are_refused() -> None:
    for wrong in ({"score": "sum"}, {"tau": 0.0}, {"right": 0.0}):
        with pytest.raises(ConfigError, match="Discriminative"):
            Discriminative(**wrong)
    with pytest.raises(ConfigError, match="beta >= 0"):
        HingeKL(delta=-1.0)
    with pytest.raises(ConfigError, match="'nonempty' or 'all'"):
        GroupMean(count="some")
