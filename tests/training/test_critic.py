"""A value model in the loop: its steps, its state, and that others are untouched by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import alone_and_on_two_ranks, metrics, quick, slow_but, weights
from tests.training.test_ranks import TOLERANCE
from tests.training.test_resume import assert_same_run
from tests.training.test_update import judged, trainer
from unipo.training.loop import Trainer
from unipo.training.ranks import Ranks
from unipo.training.update import micro_batches

OFF = {"eval.before": False, "eval.after": False}
SHARED = {"value.shared": True, "value.coefficient": 0.1}


def ppo(**changes: Any) -> Trainer:
    return trainer("ppo", set=changes)


def test_a_step_moves_policy_and_value_model_and_counts_the_passes() -> None:
    run = ppo(**{"source.epochs": 2, "source.minibatches": 3})
    assert run.critic is not None
    model = run.critic.model
    policy_before = [p.detach().clone() for p in run.policy.parameters()]
    value_before = [p.detach().clone() for _, p in model.named_parameters()]
    measured, batch = run.step()
    assert batch is not None
    assert measured["passes/extra"] == 2.0  # reference and value; the engine's log-probs are exact
    assert run.critic.optimiser is not None
    assert run.critic.optimiser.taken == 6 == run.optimiser.taken
    assert any(not torch.equal(a, b) for a, b in zip(policy_before, run.policy.parameters(), strict=True))
    assert all(not torch.equal(a, b) for a, (_, b) in zip(value_before[:2], model.named_parameters(), strict=False))
    assert not bool((batch.value != 0).any())  # read before its first step
    assert {"value/loss", "value/grad_norm", "value/mean", "value/learning_rate", "value/forwarded"} <= measured.keys()
    assert measured["gap/max"] < 1e-3


def test_the_value_model_learns_to_expect_the_reward() -> None:
    run = ppo(
        **{"value.learning_rate": 3e-3, "value.lam": 1.0, "value.clip": None, "source.epochs": 1, "shaping": "[]"}
    )
    first, _ = run.step()
    for _ in range(3):
        last, _ = run.step()
    assert last["value/loss"] < first["value/loss"] / 2


def test_while_it_learns_alone_the_policy_rests() -> None:
    run = ppo(**{"value.pretrain": 1, "source.epochs": 1})
    before = [p.detach().clone() for p in run.policy.parameters()]
    run.step()
    assert all(torch.equal(a, b) for a, b in zip(before, run.policy.parameters(), strict=True))
    assert (run.policy.updates, run.optimiser.taken) == (0, 0)
    run.step()
    assert (run.policy.updates, run.optimiser.taken) == (1, 1)


def test_a_shared_head_is_stepped_by_the_policys_optimiser() -> None:
    run = ppo(**SHARED)
    assert run.critic is not None
    assert run.critic.optimiser is None
    assert [n for n, _ in run.optimiser.named][-2:] == ["value.weight", "value.bias"]
    measured, batch = run.step()
    assert batch is not None
    assert bool((run.critic.model.head.weight != 0).any())
    assert "value/loss" not in measured
    _, batch = run.step()
    assert batch is not None
    assert bool((batch.value != 0).any())


def test_methods_without_one_have_none() -> None:
    run = trainer("reinforce++")
    assert run.critic is None
    assert run.state()["value"] is None
    measured, _ = run.step()
    assert not any(name.startswith("value/") for name in measured)


@pytest.mark.parametrize("budget", [1, 60])
def test_any_budget_and_number_of_ranks_give_the_same_value_gradient(budget: int) -> None:
    run = trainer("ppo", policy={"weights": "float64"})
    assert run.critic is not None
    batch, part, model = judged(run), run.critic.part, run.critic.model
    with torch.no_grad():
        model.head.weight.fill_(0.1)
    batch = batch.with_columns("token", **{"weight.value": part.average.weights(batch)})

    def gradient(budget: int | None, ranks: int) -> list[torch.Tensor]:
        for _, p in model.named_parameters():
            p.grad = None
        for rank in range(ranks):
            for piece, wanted in micro_batches(run.method, batch, part.active(batch), budget, Ranks(rank, ranks)):
                live = piece.with_columns(None, live_value=model.live(piece, wanted))
                (part(live) * getattr(piece, "weight.value")).sum().backward()
        return [p.grad.clone() for _, p in model.named_parameters() if p.grad is not None]

    whole = gradient(None, 1)
    assert max(float(g.abs().max()) for g in whole) > 1e-4
    for a, b in zip(whole, gradient(budget, 2), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-10)


@pytest.mark.parametrize("changes", [{"value.warmup_steps": 2, "shaping.0.target": 3.0}, SHARED], ids=["own", "shared"])
@pytest.mark.slow
def test_a_stopped_run_resumes_bit_for_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    settings = {"set": {"source.epochs": 2, **changes}, **OFF}
    quick(tmp_path / "whole", "ppo", steps=2, **settings)
    quick(tmp_path / "parted", "ppo", steps=1, **settings)
    quick(tmp_path / "parted", "ppo", steps=2, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parted", 2)
    files = [
        tmp_path / run / "checkpoints" / "step-000002" / "value" / "value.safetensors" for run in ("whole", "parted")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


RANKED: dict[str, dict[str, Any]] = {
    "ppo": {},
    "t-ppo": {"source.window": 9, "source.group_size": 2},
    "spo-segment": {"source.group_size": 2, "advantage.continuations": 2, "source.epochs": 1},
    "spo-tree": {"source.branching": [3, 2], "source.segment": 8, "source.edges": 4},
}


@pytest.mark.parametrize("methods", slow_but(["ppo"], ["ppo", "t-ppo spo-segment spo-tree"]))
def test_two_ranks_do_the_work_of_one(methods: str, tmp_path: Path) -> None:
    alone_and_on_two_ranks(tmp_path, {m: {"set": RANKED[m], **OFF} for m in methods.split()}, 2)
    names = ("loss", "value/loss", "value/grad_norm", "value/mean", "value/forwarded", "reward/mean", "tokens/sampled")
    for method in methods.split():
        alone, ranked = tmp_path / "one" / method, tmp_path / "two" / method
        for one, two in zip(metrics(alone), metrics(ranked), strict=True):
            assert one.keys() == two.keys(), method
            for name in (*names, "tokens/continued", "unfinished"):
                assert two.get(name) == pytest.approx(one.get(name), abs=20 * TOLERANCE), (method, name)
        ours, theirs = weights(alone, 2), weights(ranked, 2)
        for name, tensor in ours.items():
            torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=2e-5, msg=f"{method}: {name}")
