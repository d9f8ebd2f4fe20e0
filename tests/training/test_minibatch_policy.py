"""The current policy's log-probs over a minibatch: free while nothing has moved, otherwise one counted pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.training.test_update import gradient, judged, trainer
from unipo.judge import provide_for_loss, weigh
from unipo.training import update


def run_with(minibatches: int, **settings: Any):
    changes = {"source.minibatches": minibatches, "selection": (), "regularisers.0.share": 0.1}
    return trainer("kl-cov", prompts=4, set=changes, **settings)


def test_a_single_update_needs_no_pass() -> None:
    run = run_with(1)
    assert run.old_logp == "behaviour"
    assert run.step()[0]["passes/extra"] == 0.0


@pytest.mark.parametrize("plan", ["behaviour", "recompute"])
def test_later_updates_cost_one_pass_each_and_see_the_moved_weights(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(3, old_logp=plan, optim={"learning_rate": 1e-3})
    seen = []
    step = update._one_step

    def spy(method, minibatch, policy, *rest: Any) -> None:
        if bool(update.required_tokens(method, minibatch).any()):
            now = policy.logp(minibatch)
            gap = {name: float((now - getattr(minibatch, name)).abs().max()) for name in ("current_logp", "old_logp")}
            seen.append((run.optimiser.taken, gap))
        step(method, minibatch, policy, *rest)

    monkeypatch.setattr(update, "_one_step", spy)
    metrics, _ = run.step()
    moved = [gap for taken, gap in seen if taken > 0]
    assert moved, "the run must make more than one update for this test to say something"
    assert all(gap["current_logp"] < 1e-4 for _, gap in seen)
    assert all(gap["old_logp"] > 1e-3 for gap in moved)
    unmoved = sum(taken == 0 for taken, _ in seen)
    before = float(plan == "recompute")
    assert before + len(moved) <= metrics["passes/extra"] <= before + 3 - unmoved


def test_batches_from_older_weights_are_scored_at_the_first_update_too() -> None:
    run = run_with(1)
    run.policy.updates += 1  # as if the sampler's weights were one update behind
    collect = run.collect

    def older(*args: Any) -> Any:
        collected = collect(*args)
        collected.batch.version.sub_(1)
        return collected

    run.collect = older  # type: ignore[method-assign]
    assert run.step()[0]["passes/extra"] == 1.0


def test_the_gradient_is_the_same_however_it_is_cut_far_from_the_old_policy() -> None:
    run = run_with(1, policy={"weights": "float64"})
    batch = provide_for_loss(run.method, judged(run), run.scorer)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in run.policy.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=draw, dtype=p.dtype))
    batch = weigh(run.method, batch, run.scorer)

    penalised = batch.covariance_selected & ((batch.current_logp - batch.old_logp).abs() > 1e-3)
    assert bool(penalised.any())
    whole = gradient(run, batch, None)
    for budget, ranks in ((1, 1), (60, 1), (150, 2), (None, 3)):
        parted = gradient(run, batch, budget, ranks)
        for name, g in whole.items():
            torch.testing.assert_close(parted[name], g, rtol=0, atol=1e-10, msg=f"{name} with {budget=}, {ranks=}")


def test_where_nothing_has_moved_a_rounding_is_not_penalised() -> None:
    """At the first update the old log-probs are the sampler's, which the trainer meets but for a rounding."""
    run, plain = run_with(1), trainer("kl-cov", prompts=4, set={"selection": (), "regularisers": ()})
    batch = judged(run)
    rounded = batch.behaviour_logp + 1e-6
    batch = batch.with_columns(None, old_logp=rounded, current_logp=rounded)
    ready = weigh(run.method, batch, run.scorer)
    assert not bool(ready.covariance_selected.any())
    expected = gradient(plain, weigh(plain.method, batch, plain.scorer), None)
    assert max(float(g.abs().max()) for g in expected.values()) > 0
    for name, g in gradient(run, ready, None).items():
        assert torch.equal(g, expected[name]), name
