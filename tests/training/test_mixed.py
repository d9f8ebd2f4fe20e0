"""Runs that sample and imitate at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import unipo
from tests.training.conftest import metrics, quick
from tests.training.test_update import trainer
from unipo.errors import DataError
from unipo.training.config import OptimConfig
from unipo.training.optim import Optimiser, resolve_optim

Rows = Callable[[list[dict[str, Any]]], str]
QUIET: dict[str, Any] = {"eval.before": False, "eval.after": False, "data.reward": "numbers"}


def test_each_prompt_brings_its_demonstration_after_its_samples() -> None:
    run = trainer("hpt", prompts=3)
    collected = run.collect()
    assert collected is not None
    batch = collected.batch
    assert batch.layout.group_sizes.tolist() == [9] * 3
    assert batch.demonstration.tolist() == [*[False] * 8, True] * 3
    assert not bool((batch.scored & batch.demonstration).any())
    by_id = {p.example.id: p for p in run.stream.prompts}
    for i, identifier in enumerate(batch.prompt_id.tolist()):
        last = batch.take_prompts([i]).take_sequences([8])
        assert last.tokens.tolist() == list(by_id[identifier].responses[0])
        assert last.text == [by_id[identifier].example.responses[0].text]
        assert not bool(last.behaviour_logp.any())
    sampled = batch.layout.seq_lengths[~batch.demonstration]
    assert collected.sampled_tokens == int(sampled.sum())


def test_metrics_are_of_what_was_sampled() -> None:
    run = trainer("hpt", prompts=4)
    told, batch = run.step()
    assert batch is not None
    sampled = ~batch.demonstration
    failed = batch.layout.group_sum((batch.scored & (batch.score >= 1)).long()) == 0
    assert told["demonstrations"] == float(failed.sum())
    assert told["unscored"] == 0.0
    assert told["length/mean"] == pytest.approx(float(batch.layout.seq_lengths[sampled].double().mean()))
    assert told["gap/max"] < 1e-4


def test_a_failed_prompt_learns_its_demonstration(tmp_path: Path, rows: Rows) -> None:
    """The reward is never given, so only the likelihood term moves the policy, and the demonstrations get likelier."""
    data = rows(
        [{"prompt": f"{i}+{i}=", "answer": "-99999", "response": f"<think>{i}</think>{2 * i}"} for i in range(4)]
    )
    quick(tmp_path / "run", "hpt", steps=8, prompts=4, **QUIET, **{"data.data": data, "optim.learning_rate": 1e-3})
    log = metrics(tmp_path / "run")
    assert [m["demonstrations"] for m in log] == [4.0] * 8
    assert log[-1]["loss"] < log[0]["loss"]


def test_prompts_without_a_demonstration_are_counted(tmp_path: Path, rows: Rows) -> None:
    data = [{"messages": [{"role": "user", "content": f"{i}+1="}], "answer": str(i + 1)} for i in range(4)]
    data[0]["messages"].append({"role": "assistant", "content": "<think></think>1"})
    run = tmp_path / "run"
    quick(run, "hpt", steps=1, **QUIET, **{"data.data": rows(data)})
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert events[0]["prompt without a demonstration (kept)"] == 3


def test_data_without_any_demonstration_is_refused(tmp_path: Path, rows: Rows) -> None:
    data = rows([{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(4)])
    with pytest.raises(DataError, match="hpt learns from demonstrations too, but no prompt has one"):
        quick(tmp_path / "run", "hpt", steps=1, **QUIET, **{"data.data": data})


def test_a_step_with_too_large_a_gradient_is_left_out_and_counted() -> None:
    p = torch.nn.Parameter(torch.zeros(2))
    config = resolve_optim(OptimConfig(learning_rate=1.0), unipo.get_method("hpt").defaults)
    assert config.skip_grad_norm == 80.0
    optimiser = Optimiser(config, [("p", p)], 1)
    for gradient, refused in (([300.0, 400.0], 1), ([0.3, 0.4], 1)):
        before = p.detach().clone()
        p.grad = torch.tensor(gradient)
        optimiser.step()
        assert optimiser.refused == refused
        assert torch.equal(p, before) == (gradient[0] > 1)
    assert optimiser.taken == 2


def test_a_step_left_out_is_a_named_event() -> None:
    run = trainer("hpt", optim={"skip_grad_norm": 1e-9})
    before = [p.detach().clone() for p in run.policy.parameters()]
    assert run.step()[0]["events/gradient_too_large"] == 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, run.policy.parameters(), strict=True))
