"""CoT2's compositions: the loss by hand, and what they become in the limits."""

from __future__ import annotations

import math

import pytest
import torch

from unipo.batch import Batch
from unipo.judge import judge, loss, weigh
from unipo.layout import Layout
from unipo.method import diff
from unipo.parts.continuous import DirichletStep, SampledTokens
from unipo.registry import get_method


def two_rollouts(logp: list[float], old: list[float]) -> Batch:
    """One prompt, two responses of two steps, the first right."""
    layout = Layout.of([2, 2], [2], [1])
    wide = torch.float64
    return Batch.of(
        layout,
        context=torch.tensor([0]),
        tokens=torch.tensor([1, 2, 3, 4]),
        trainable=torch.ones(4, dtype=torch.bool),
        reward=torch.tensor([1.0, 0.0], dtype=wide),
        scored=torch.tensor([True, True]),
        logp=torch.tensor(logp, dtype=wide, requires_grad=True),
        old_logp=torch.tensor(old, dtype=wide),
    )


@pytest.mark.parametrize("name", ["cot2-grpo", "cot2-grpo-dirichlet"])
def test_loss_and_gradient_by_hand(name: str) -> None:
    # A = (1 - 1/2) / (1/2) = 1 and -1 (population std). Step ratios 1.05, 1.3 | 0.95, 0.5, range 0.9 .. 1.1:
    #   -min(1.05, 1.05) = -1.05;  -min(1.3, 1.1) = -1.1;  -min(-.95, -.95) = .95;  -min(-.5, -.9) = .9
    # mean over two steps and two responses: (-1.05 - 1.1 + .95 + .9) / 4 = -0.075
    ratio = [1.05, 1.3, 0.95, 0.5]
    old = [-3.0, -1.0, 2.5, -4.0]  # a density's logarithm may be positive
    method = get_method(name)
    batch = weigh(method, judge(method, two_rollouts([o + math.log(r) for o, r in zip(old, ratio, strict=True)], old)))
    total = loss(method, batch).total
    assert float(total.detach()) == pytest.approx(-0.075, abs=1e-9)
    (gradient,) = torch.autograd.grad(total, batch.logp)
    # -w rho A where not clipped; .5 < .9 with A < 0 is clipped
    assert gradient.tolist() == pytest.approx([-1.05 / 4, 0.0, 0.95 / 4, 0.0], abs=1e-9)


def test_reference_kl_uses_the_steps_own_ratio() -> None:
    # d = log pi - log ref = ln 2 at one of four steps: k3 = exp(-d) - 1 + d = 1/2 - 1 + ln 2
    method = get_method("cot2-grpo-dirichlet").but(**{"regularisers.0.beta": 0.1})
    old = [3.0, -1.0, -2.0, -1.0]
    batch = two_rollouts(old, old).with_columns(None, reference_logp=torch.tensor(old).double())
    batch.reference_logp[0] -= math.log(2)
    batch = weigh(method, judge(method, batch))
    assert loss(method, batch).terms["ReferenceKL"] == pytest.approx(0.1 * (math.log(2) - 0.5) / 4)


def test_with_one_token_and_its_numbers_it_is_grpo() -> None:
    ours = get_method("cot2-grpo").but(**{"source.step.k": 1})
    paths = {change.path for change in diff(get_method("grpo"), ours)}
    assert paths == {"source", "advantage.eps", "advantage.unbiased", "objective.low", "objective.high",
                     "regularisers.beta"}  # fmt: skip
    assert ours.source.step.temperature == 1.0  # type: ignore[attr-defined]


def test_the_supervised_loss_is_the_sum_over_steps_and_mean_over_examples() -> None:
    # logp of a taught step is -KL: (.3 + .2) + (.1 + .4), halved
    method = get_method("csft")
    batch = two_rollouts([-0.3, -0.2, -0.1, -0.4], [0.0] * 4)
    batch = weigh(method, judge(method, batch))
    assert float(loss(method, batch).total.detach()) == pytest.approx(0.5)


def test_names() -> None:
    assert get_method("cot2") is get_method("cot2-mts") is get_method("cot2-grpo")
    assert get_method("cot2-grpo").source.step == SampledTokens(3, True)  # type: ignore[attr-defined]
    assert [c.path for c in diff(get_method("cot2-grpo"), get_method("cot2-dirichlet"))] == ["source.step"]
    assert get_method("cot2-dirichlet").source.step == DirichletStep(1.0, 1e-3)  # type: ignore[attr-defined]
    assert "prod_k p(i_k)" in get_method("cot2").explain()
