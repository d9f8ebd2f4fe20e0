"""The public checkers pass every built-in part and name what is wrong with broken ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.check import CheckFailed, check_advantage, check_objective
from unipo.errors import ConfigError
from unipo.parts import advantage as advantages
from unipo.parts.average import ConstantNormaliser, SequenceMean, SequenceSum, TokenMean
from unipo.parts.objective import Clipped, ClippedWeight, ScoreFunction, SequenceClipped, SequenceClippedToken
from unipo.parts.part import Advantage, Objective, Pieces, log_ratio
from unipo.parts.preference import DPO, LogLikelihood
from unipo.parts.regulariser import ESTIMATORS, EntropyBonus, ReferenceKL
from unipo.registry import catalogue

ADVANTAGES: list[Advantage] = [
    advantages.Raw(),
    advantages.RunningBaseline(),
    advantages.GroupCentred(),
    advantages.GroupNormalised(),
    advantages.GroupNormalised(unbiased=False),
    advantages.LeaveOneOut(),
    advantages.WhitenedReturn(),
    advantages.CentredReturn(beta=0.1, gamma=0.9),
]
OBJECTIVES: list[Objective] = [
    ScoreFunction(),
    Clipped(),
    Clipped(dual=1.2),
    ClippedWeight(cap=1.2),
    SequenceClipped(0.1, 0.1),
    SequenceClipped(0.1, 0.1, geometric=False),
    SequenceClippedToken(0.1, 0.1),
    DPO(),
    DPO(label_smoothing=0.1),
    DPO(reference_free=True),
    LogLikelihood(),
    LogLikelihood(dynamic=True),
    EntropyBonus(strength=0.1),
    *(ReferenceKL(estimator=e, corrected=c) for e in ESTIMATORS for c in (False, True)),
]


@pytest.mark.parametrize("part", ADVANTAGES, ids=repr)
def test_every_advantage_passes(part: Advantage) -> None:
    assert check_advantage(part).passed


@pytest.mark.parametrize("part", OBJECTIVES, ids=repr)
def test_every_objective_passes(part: Objective) -> None:
    assert check_objective(part).passed


def test_every_part_of_the_catalogue_passes() -> None:
    for method in catalogue().values():
        if method.advantage is not None:
            assert check_advantage(method.advantage, batches=1).passed
        for term in method.terms:
            assert check_objective(term.objective, batches=1).passed


@pytest.mark.parametrize("average", [TokenMean(), SequenceMean(count="all"), SequenceSum(), ConstantNormaliser(8)])
def test_the_average_may_be_chosen(average: TokenMean) -> None:
    assert check_objective(Clipped(), average=average).passed


def test_a_report_lists_what_was_checked() -> None:
    report = check_objective(EntropyBonus(strength=0.1))
    statuses = {f.name: f.status for f in report.findings}
    assert statuses["pieces give the gradient"] == "skipped"
    assert statuses["same however it is cut"] == "ok"
    assert str(report).startswith("EntropyBonus(strength=0.1): passed")


# -- broken on purpose -------------------------------------------------------------------------------------
class Mine(Advantage):
    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "scored")

    def formula(self) -> str:
        return "A = ?"

    def reward(self, batch: Batch) -> Tensor:
        return torch.where(batch.scored, batch.reward, torch.zeros_like(batch.reward))


class Undeclared(Mine):
    def __call__(self, batch: Batch) -> Tensor:
        return self.reward(batch) * batch.score


class ReadsTheUnscored(Mine):
    def __call__(self, batch: Batch) -> Tensor:
        return batch.reward


class RewardsTheUnscored(Mine):
    def __call__(self, batch: Batch) -> Tensor:
        return self.reward(batch) - 0.5


class TrustsRounding(Mine):
    """Standardises without comparing: 0.1 - mean(0.1, ..., 0.1) over a std of rounding error."""

    smallest_group: ClassVar[int] = 2

    def __call__(self, batch: Batch) -> Tensor:
        layout = batch.layout
        centred = self.reward(batch) - layout.to_sequences(layout.group_mean(self.reward(batch), batch.scored) + 1e-16)
        return torch.where(batch.scored, centred, torch.zeros_like(centred))


class DependsOnPlace(Mine):
    def __call__(self, batch: Batch) -> Tensor:
        return self.reward(batch) * torch.arange(batch.layout.n_sequences)


class PerPrompt(Mine):
    def __call__(self, batch: Batch) -> Tensor:
        return batch.layout.group_mean(self.reward(batch))


class Mutates(Mine):
    def __call__(self, batch: Batch) -> Tensor:
        value = self.reward(batch)
        batch.reward.mul_(0.5)
        return value


class Random(Mine):
    def __call__(self, batch: Batch) -> Tensor:
        return self.reward(batch) * torch.rand(())


class Wordless(Mine):
    def formula(self) -> str:
        return " "

    def __call__(self, batch: Batch) -> Tensor:
        return self.reward(batch)


@pytest.mark.parametrize(
    ("part", "name", "detail"),
    [
        (Undeclared(), "reads only what it declares", "no column 'score'"),
        (ReadsTheUnscored(), "finite whatever the masked values are", "not finite"),
        (RewardsTheUnscored(), "unscored or masked get 0", "values outside the scored"),
        (TrustsRounding(), "equal rewards get 0", "where all rewards of a group are equal"),
        (DependsOnPlace(), "order of prompts and responses", "reordering the batch changes values"),
        (PerPrompt(), "one number per unit", "the result has shape"),
        (Mutates(), "same result twice, inputs unchanged", ""),
        (Random(), "same result twice, inputs unchanged", "two calls on one batch differ"),
        (Wordless(), "formula is not empty", "formula() gives ' '"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Advantage) else "",
)
def test_broken_advantages_are_caught(part: Advantage, name: str, detail: str) -> None:
    with pytest.raises(CheckFailed) as caught:
        check_advantage(part)
    failures = {f.name: f.detail for f in caught.value.report.failures}
    assert detail in failures[name]
    assert name in str(caught.value)
    assert isinstance(caught.value, AssertionError)


class Plain(Objective):
    """-rho A done right: what the broken ones below break."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logp", "old_logp", "advantage", "mask")

    def formula(self) -> str:
        return "l = -rho A"

    def ratio(self, batch: Batch) -> Tensor:
        return log_ratio(batch.logp, batch.old_logp, batch.mask).exp()

    def __call__(self, batch: Batch) -> Tensor:
        return -self.ratio(batch) * batch.advantage


class MultipliesTheMask(Plain):
    def ratio(self, batch: Batch) -> Tensor:
        return (batch.logp - batch.old_logp).exp() * batch.mask


class AveragesItself(Plain):
    """Divides by this piece's own token count: the gradient then depends on the cut."""

    def __call__(self, batch: Batch) -> Tensor:
        return super().__call__(batch) / batch.mask.sum().clamp(min=1)


class ForgetsTokens(Plain):
    def active(self, batch: Batch) -> Tensor:
        return batch.mask & (batch.advantage > 0)


class WrongPieces(Plain):
    def pieces(self, batch: Batch) -> Pieces:
        return Pieces(batch.mask.double(), torch.ones_like(batch.logp.detach()), batch.advantage)


class Summed(Plain):
    def __call__(self, batch: Batch) -> Tensor:
        return super().__call__(batch).sum()


class PeeksAtTheReward(Plain):
    def __call__(self, batch: Batch) -> Tensor:
        return super().__call__(batch) * batch.layout.to_tokens(batch.scored)


class LooksBack(Plain):
    """Centres by the batch's mean advantage: another batch-level quantity taken inside the loss."""

    def __call__(self, batch: Batch) -> Tensor:
        return -self.ratio(batch) * (batch.advantage - batch.advantage.mean()) * batch.mask


@pytest.mark.parametrize(
    ("part", "name", "detail"),
    [
        (MultipliesTheMask(), "masked tokens never reach loss or gradient", "not finite"),
        (AveragesItself(), "same however it is cut", "micro-batches"),
        (LooksBack(), "same however it is cut", "micro-batches"),
        (ForgetsTokens(), "active covers every gradient", "active() leaves them out"),
        (WrongPieces(), "pieces give the gradient", "pieces().gradient: off by"),
        (Summed(), "one number per unit", "the result has shape ()"),
        (PeeksAtTheReward(), "reads only what it declares", "no column 'scored'"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Objective) else "",
)
def test_broken_objectives_are_caught(part: Objective, name: str, detail: str) -> None:
    assert check_objective(Plain()).passed
    with pytest.raises(CheckFailed) as caught:
        check_objective(part)
    failures = {f.name: f.detail for f in caught.value.report.failures}
    assert detail in failures[name]


# -- columns of one's own -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ByDifficulty(Mine):
    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "scored", "difficulty")

    def __call__(self, batch: Batch) -> Tensor:
        return self.reward(batch) * batch.layout.to_sequences(batch.difficulty)


def test_columns_the_checker_does_not_know_are_prepared_by_the_caller() -> None:
    with pytest.raises(ConfigError, match="ByDifficulty needs difficulty, which the checker cannot make up"):
        check_advantage(ByDifficulty())

    def prepare(batch: Batch, draw: torch.Generator) -> Batch:
        return batch.with_columns("prompt", difficulty=torch.rand(batch.layout.n_prompts, generator=draw).double())

    assert check_advantage(ByDifficulty(), prepare=prepare).passed


def test_whether_equal_rewards_give_zero_can_be_asked_for() -> None:
    assert check_advantage(advantages.Raw()).passed
    with pytest.raises(CheckFailed, match="equal rewards get 0"):
        check_advantage(advantages.Raw(), zero_variance=True)
    assert check_advantage(advantages.GroupCentred(), zero_variance=False).passed
