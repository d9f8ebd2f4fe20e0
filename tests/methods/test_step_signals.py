"""What is counted over a whole minibatch under the current policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from bigram import Bigram, random_rollout
from torch import Tensor

from unipo.batch import Batch
from unipo.check import CheckFailed, check_objective
from unipo.errors import ConfigError
from unipo.judge import judge, loss, provide_for_loss, weigh
from unipo.parts.objective import Clipped
from unipo.parts.part import Pieces
from unipo.parts.regulariser import ReferenceKL
from unipo.registry import get_method


@dataclass(frozen=True)
class BelowAverage(Clipped):
    """Only tokens less likely now than the minibatch's mean count."""

    prepares: ClassVar[Mapping[str, str]] = {"below": "token", "mean_logp": "prompt"}

    @property
    def needs(self) -> tuple[str, ...]:
        return (*super().needs, "current_logp")

    def prepare(self, batch: Batch) -> Mapping[str, Tensor]:
        mean = batch.current_logp[batch.mask].mean()
        return {"below": batch.mask & (batch.current_logp < mean), "mean_logp": mean}

    def __call__(self, batch: Batch) -> Tensor:
        return torch.where(batch.below, super().__call__(batch), 0.0)

    def pieces(self, batch: Batch) -> Pieces:
        plain = super().pieces(batch)
        return Pieces(plain.mask * batch.below, plain.ratio, plain.advantage)


def method(**changes: object):
    return get_method("grpo-token").but(name="below", objective=BelowAverage(), **changes)


def judged(policy: Bigram) -> Batch:
    below = method()
    rollout = random_rollout(0, 8)
    return provide_for_loss(below, judge(below, rollout, policy), policy)


def test_the_current_policy_is_asked_once_per_minibatch_and_not_before() -> None:
    policy = Bigram(0)
    batch = judged(policy)
    assert not batch.has("current_logp")
    before = len(policy.calls)
    policy.theta = (policy.theta.detach() * 1.5).requires_grad_()
    weighed = weigh(method(), batch, policy)
    assert len(policy.calls) == before + 1
    torch.testing.assert_close(weighed.current_logp, policy.live(batch).logp.detach())
    assert not torch.equal(weighed.current_logp, batch.old_logp)


def test_without_a_scorer_the_current_policy_is_the_old_one() -> None:
    batch = judged(Bigram(0))
    assert torch.equal(weigh(method(), batch).current_logp, batch.old_logp)


def test_what_is_given_is_not_asked_again() -> None:
    policy = Bigram(0)
    batch = judged(policy)
    before = len(policy.calls)
    weigh(method(), batch.with_columns(None, current_logp=batch.old_logp), policy)
    assert len(policy.calls) == before


def test_prepared_columns_and_numbers_travel_with_every_piece() -> None:
    policy = Bigram(0)
    batch = weigh(method(), judged(policy), policy)
    mean = batch.current_logp[batch.mask].mean()
    torch.testing.assert_close(batch.mean_logp, mean.expand(6))
    for piece in batch.split_by_tokens(9):
        assert bool((piece.mean_logp == mean).all())
        assert torch.equal(piece.below, piece.mask & (piece.current_logp < mean))
    assert not batch.below.requires_grad
    live = policy.live(batch)
    (gradient,) = torch.autograd.grad(loss(method(), live).total, live.logp)
    assert bool((gradient[batch.below & (batch.advantage != 0)] != 0).all())
    assert not bool((gradient[~batch.below] != 0).any())


def test_a_method_without_such_a_part_asks_for_nothing() -> None:
    assert "current_logp" not in {c for s in get_method("grpo").signals for c in s.adds}
    assert "current_logp" in {c for s in method().signals for c in s.adds}


@dataclass(frozen=True)
class EarlyReader(type(get_method("grpo").advantage)):
    @property
    def needs(self) -> tuple[str, ...]:
        return (*super().needs, "current_logp")


def test_an_advantage_cannot_read_the_current_policy() -> None:
    with pytest.raises(ConfigError, match="'current_logp'; it exists after the step stage"):
        get_method("grpo").but(advantage=EarlyReader())


@dataclass(frozen=True)
class AlsoBelow(ReferenceKL):
    prepares: ClassVar[Mapping[str, str]] = {"below": "token"}


def test_two_parts_cannot_prepare_the_same_column() -> None:
    with pytest.raises(ConfigError, match="both make column 'below'"):
        method(regularisers=(AlsoBelow(),))


@dataclass(frozen=True)
class ReadsMasked(BelowAverage):
    def prepare(self, batch: Batch) -> Mapping[str, Tensor]:
        mean = batch.current_logp.mean()
        return {"below": batch.current_logp < mean, "mean_logp": mean}


def test_the_checker_sees_what_is_prepared() -> None:
    assert check_objective(BelowAverage()).passed
    with pytest.raises(CheckFailed, match="depends on masked tokens"):
        check_objective(ReadsMasked())
