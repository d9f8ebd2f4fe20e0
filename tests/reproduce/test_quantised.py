"""A sampler of rounded weights: what it writes is not the policy's, and the policy is untouched."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unipo.reproduce.quantised  # noqa: F401
from tests.training.test_update import trainer
from unipo.errors import ConfigError
from unipo.reproduce.quantised import Quantised, QuantisedEngine, rounded, rounded_weights


def test_rounding_by_hand() -> None:
    row = torch.tensor([[1.0, -0.4, 0.2, 0.0], [0.0, 0.0, 0.0, 0.0], [-3.0, 1.4, 1.6, 0.1]])
    # 3 bits: steps of max/3, at most three of them to either side.
    expected = torch.tensor([[1.0, -1 / 3, 1 / 3, 0.0], [0.0, 0.0, 0.0, 0.0], [-3.0, 1.0, 2.0, 0.0]])
    torch.testing.assert_close(rounded(row, 3), expected)
    torch.testing.assert_close(rounded(row, 2)[0], torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert float((rounded(row, 16) - row).abs().max()) < 1e-4


def test_too_few_bits_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        Quantised(bits=1)


def run_with(bits: int, **settings: Any):
    changes = {"source": f"Quantised(group_size=4, bits={bits})"}
    return trainer("grpo-token", set=changes, old_logp="recompute", **settings)


def test_samples_are_those_of_the_rounded_policy_and_the_trainer_sees_its_own() -> None:
    run = run_with(4)
    before = {n: p.detach().clone() for n, p in run.policy.named_parameters()}
    collected = run.collect()
    assert collected is not None
    assert all(torch.equal(p, before[n]) for n, p in run.policy.named_parameters())
    batch = collected.batch
    with rounded_weights(run.policy, 4):
        torch.testing.assert_close(run.policy.logp(batch), batch.behaviour_logp, rtol=0, atol=1e-4)
    gap = (run.policy.logp(batch) - batch.behaviour_logp).abs()
    assert float(gap.max()) > 0.1


def test_more_bits_are_nearer_and_the_difference_is_measured() -> None:
    gaps = [run_with(bits).step()[0]["gap/mean"] for bits in (3, 5, 8)]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


def test_it_is_not_taken_for_an_exact_engine() -> None:
    run = run_with(4)
    assert isinstance(run.source.engine, QuantisedEngine)
    assert not run.source.engine.exact


def test_the_trainer_never_reads_what_rounded_weights_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unipo.policy.model.TAPE_FROM", 0)
    assert trainer("grpo-token", set={"source.group_size": 4}).step()[0]["gap/mean"] < 1e-4
    assert run_with(4).step()[0]["gap/mean"] > 0.01


def test_the_gap_is_of_all_tokens_however_the_batch_is_cut() -> None:
    whole, parted = run_with(4).step()[0], run_with(4, policy={"micro_tokens": 60}).step()[0]
    for name in ("gap/mean", "gap/max"):
        assert parted[name] == pytest.approx(whole[name], rel=1e-3)
