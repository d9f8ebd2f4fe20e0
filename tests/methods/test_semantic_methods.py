"""SEED-GRPO and EMPO as methods: their limits, and signals that ask no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from bigram import Bigram, random_rollout
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.judge import judge, loss, provide_for_loss, weigh
from unipo.method import Method
from unipo.parts.advantage import GroupNormalised
from unipo.parts.part import Derived, Shaping, Signal
from unipo.parts.semantic import SemanticEntropyWeight
from unipo.registry import get_method

SEED, DR, EMPO = (get_method(name) for name in ("seed-grpo", "dr-grpo", "empo"))


def gradient(method: Method, batch: Batch, prompts: Tensor | None = None) -> Tensor:
    policy = Bigram(3)
    method = method.bound_to(8)
    ready = weigh(method, provide_for_loss(method, judge(method, batch, policy), policy, skip=("logp", "entropy")))
    if prompts is not None:
        ready = ready.take_prompts(prompts)
    return torch.autograd.grad(loss(method, policy.live(ready)).total, policy.theta)[0]


@pytest.mark.parametrize("form", ["linear", "exponential", "focal"])
def test_without_alpha_seed_grpo_is_dr_grpo(form: str) -> None:
    batch = random_rollout(0, 8)
    off = SEED.but(credit=(SemanticEntropyWeight(alpha=0.0, form=form),))
    assert torch.equal(judge(off, batch).advantage, judge(DR, batch).advantage)


@pytest.mark.parametrize("advantage", [DR.advantage, GroupNormalised()], ids=lambda a: type(a).__name__)
def test_the_gradient_is_the_weighted_sum_of_the_prompts_gradients(advantage: GroupNormalised) -> None:
    """With a standard deviation too: the weight comes after it, so it is not divided away."""
    batch = random_rollout(1, 8)
    strong = SEED.but(advantage=advantage, credit=(SemanticEntropyWeight(alpha=0.8),))
    plain = DR.but(advantage=advantage)
    weights = strong.credit[0].weights(judge(strong, batch))  # type: ignore[attr-defined]
    assert float(weights.max() - weights.min()) > 0.01
    prompts = torch.arange(batch.layout.n_prompts)
    parts = [weights[p] * gradient(plain, batch, prompts == p) for p in prompts]
    torch.testing.assert_close(gradient(strong, batch), torch.stack(parts).sum(0), rtol=1e-10, atol=1e-12)
    before, after = judge(plain, batch).advantage, judge(strong, batch).advantage
    assert torch.equal(before.sign(), after.sign())


def test_empo_reads_no_label_and_no_reward() -> None:
    batch = random_rollout(2, 7)
    garbage = batch.with_columns(
        None, answer=["nonsense"] * 6, reward=torch.rand(42).double(), score=torch.rand(42).double()
    )
    assert torch.equal(judge(EMPO, batch).advantage, judge(EMPO, garbage).advantage)


def test_empo_learns_nothing_from_unanimity_and_from_total_disagreement() -> None:
    batch = random_rollout(2, 7)
    for answers in (["same"] * 42, [str(i) for i in range(42)]):
        assert not bool((judge(EMPO, batch.with_columns(None, extracted=answers)).advantage != 0).any())


# -- signals that ask no model -------------------------------------------------------------------------------
@dataclass(frozen=True)
class Parity(Derived):
    level: ClassVar[str] = "sequence"
    adds: ClassVar[tuple[str, ...]] = ("parity",)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("sample_id",)

    def derive(self, batch: Batch) -> dict[str, Tensor]:
        return {"parity": batch.sample_id % 2}

    def formula(self) -> str:
        return "parity of the sample's number"


@dataclass(frozen=True)
class Odd(Shaping):
    signal: Signal = Parity()

    @property
    def needs(self) -> tuple[str, ...]:
        return ("parity", "reward")

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (self.signal,)

    def __call__(self, batch: Batch) -> Tensor:
        reward: Tensor = batch.reward
        return reward + batch.parity

    def formula(self) -> str:
        return "R_i += parity"


def test_a_derived_column_needs_no_scorer_but_a_models_does() -> None:
    batch = random_rollout(0, 8)
    odd = DR.but(name="odd", shaping=(Odd(),))
    assert judge(odd, batch).parity.tolist() == [0, 1] * 24
    with pytest.raises(ConfigError, match="no model was given"):
        judge(get_method("rloo"), random_rollout(0, 4))


def test_a_column_that_the_source_gives_is_believed() -> None:
    batch = random_rollout(0, 8).with_columns("sequence", parity=torch.full((48,), 5))
    assert judge(DR.but(name="odd", shaping=(Odd(),)), batch).parity.tolist() == [5] * 48
