"""An asynchronous source in one process: batches really written by older weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import metrics, quick
from tests.training.test_replay import Always
from tests.training.test_resume import assert_same_run
from tests.training.test_update import trainer
from unipo.training.loop import Trainer


def run_with(staleness: int, **settings: Any):
    changes = {"source.staleness": staleness, "source.group_size": 4}
    return trainer("async-decoupled-ppo", set=changes, optim={"learning_rate": 1e-3}, **settings)


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.slow
def test_each_batch_was_written_by_the_weights_of_so_many_batches_ago(staleness: int) -> None:
    """Scored by the weights of that time, its log-probs are the sampler's; scored by the present ones they are not."""
    run = run_with(staleness)
    past = []
    for step in range(5):
        past.append({n: p.detach().clone() for n, p in run.policy.named_parameters()})
        values, batch = run.step()
        assert batch is not None
        lag = min(step, staleness)
        assert set(batch.lag.tolist()) == {lag}
        assert (values["staleness/max"], values["staleness/mean"]) == (lag, lag)
        present = {n: p.detach().clone() for n, p in run.policy.named_parameters()}

        def gap(weights: dict[str, torch.Tensor], batch: Any = batch) -> float:
            with torch.no_grad():
                for name, p in run.policy.named_parameters():
                    p.copy_(weights[name])
            return float((run.policy.logp(batch) - batch.behaviour_logp).abs().max())

        assert gap(past[step - lag]) < 1e-4
        torch.testing.assert_close(run.policy.logp(batch), batch.behaviour_logp, rtol=0, atol=1e-4)
        if lag:
            assert gap(past[step]) > 1e-3
            torch.testing.assert_close(run.policy.logp(batch), batch.old_logp, rtol=0, atol=1e-4)
        gap(present)
    assert len(run.queue.waiting) == staleness


def test_the_old_policy_is_recomputed_once_per_batch() -> None:
    run = run_with(2)
    assert run.old_logp == "recompute"
    assert [run.step()[0]["passes/extra"] for _ in range(3)] == [1.0, 1.0, 1.0]


def test_the_interpolated_form_needs_no_pass() -> None:
    from unipo.parts.asynchronous import LogLinearDecoupled

    run = run_with(2)
    run.method = run.method.but(objective=LogLinearDecoupled(), credit=())
    assert [run.step()[0]["passes/extra"] for _ in range(3)] == [0.0, 0.0, 0.0]


def test_nothing_is_kept_of_sampling_for_batches_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one step's tape say nothing about a batch that another step wrote."""
    monkeypatch.setattr("unipo.policy.model.TAPE_FROM", 1)
    assert run_with(0)._record() is not None
    run = run_with(2)
    assert run._record() is None
    assert {int(x) for _ in range(2) for x in run.step()[1].taped} == {-1}


def test_staleness_zero_is_on_policy() -> None:
    one, other = run_with(0), trainer("grpo-token", set={"source.group_size": 4}, optim={"learning_rate": 1e-3})
    for _ in range(2):
        a, b = one.step()[1], other.step()[1]
        assert a is not None
        assert b is not None
        assert torch.equal(a.tokens, b.tokens)


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit_with_its_waiting_batches(stop: int, tmp_path: Path) -> None:
    settings = {"eval.before": False, "eval.after": False, "set": {"source.staleness": 2, "source.group_size": 4}}
    quick(tmp_path / "whole", "async-decoupled-ppo", steps=5, **settings)
    quick(tmp_path / "parted", "async-decoupled-ppo", steps=stop, **settings)
    quick(tmp_path / "parted", "async-decoupled-ppo", steps=5, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parted", 5)
    assert [m["staleness/max"] for m in metrics(tmp_path / "whole")] == [0, 1, 2, 2, 2]


@pytest.mark.slow
def test_an_extra_update_is_not_taken_for_a_batch() -> None:
    """The lag counts batches: what a guard adds makes none staler than promised."""
    run = run_with(2)
    guarded = Trainer(replace(run.setup, method=run.method.but(guard=Always())))
    lags = []
    for _ in range(5):
        values, batch = guarded.step()
        assert batch is not None
        lags.append(values["staleness/max"])
    assert lags == [0, 1, 2, 2, 2]


def test_the_lag_of_a_kept_prompt_is_that_of_the_weights_that_wrote_it() -> None:
    run, first = run_with(1), run_with(1).collect()  # the same weights write the same batch
    assert first is not None
    for _ in range(2):
        run.step()
    run.collector.surplus = first.batch.without("lag").take_prompts([0])
    run.step()  # samples the batch that follows, the kept prompt in it
    values, batch = run.step()
    assert batch is not None
    assert values["staleness/max"] == 3
    assert torch.equal(batch.lag, run.policy.updates - 1 - batch.version)


def test_a_step_without_a_batch_makes_nothing_staler() -> None:
    run = run_with(1)
    run.step()
    waiting = run.queue.waiting
    run.queue.waiting = [None]
    assert run.step()[0]["events/no_prompt_qualified"] == 1
    run.queue.waiting = waiting
    assert run.step()[0]["staleness/max"] == 1
