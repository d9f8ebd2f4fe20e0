"""The benchmark's step is a real step: it generates what it says and moves the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.policy.models import VOCAB, make
from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.judge import judge, weigh
from unipo.training.bench import StepBench, hashed_reward

PROMPTS = [[1, 2, 3, 4], [5, 6], [7, 8, 9]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make("qwen3").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_generates_updates_and_changes_every_weight(folder: Path, dtype: str) -> None:
    bench = StepBench(str(folder), PROMPTS, 4, 6, dtype, 1e-3, 0)
    before = [p.detach().clone() for p in bench.policy.parameters()]
    timed = bench.step()
    assert set(timed) == {"generation_s", "update_s", "step_s"}
    assert 0 < timed["generation_s"] + timed["update_s"] <= timed["step_s"]
    assert all(not torch.equal(a, b) for a, b in zip(before, bench.policy.parameters(), strict=True))
    assert all(bool(torch.isfinite(p).all()) for p in bench.policy.parameters())


def test_generation_has_the_forced_length_and_differs_from_round_to_round(folder: Path) -> None:
    bench = StepBench(str(folder), PROMPTS, 4, 6, "float32", 1e-3, 0)
    assert bench.generate()["tokens"] == 3 * 4 * 6
    first, second = bench._write(), bench._write()
    assert any(not torch.equal(a.tokens, b.tokens) for a, b in zip(first[0], second[0], strict=True))


def test_micro_batches_move_the_weights_alike(folder: Path) -> None:
    moved = []
    for micro_tokens in (0, 12):
        bench = StepBench(str(folder), PROMPTS, 4, 6, "float32", 1e-3, 0, micro_tokens=micro_tokens)
        bench._update(bench_batch(bench))
        moved.append(torch.cat([p.detach().flatten() for p in bench.policy.parameters()]))
    # Adam divides a gradient by its size, so float noise on a vanishing one may move a weight by up to the rate.
    assert float(((moved[0] - moved[1]).abs() > 1e-5).double().mean()) < 0.01


def bench_batch(bench: StepBench) -> Batch:
    return weigh(bench.method, judge(bench.method, bench._batch(bench._write()), bench.policy))


def test_rewards_depend_on_the_answer_alone() -> None:
    assert hashed_reward([1, 2, 3]) == hashed_reward([1, 2, 3]) != hashed_reward([3, 2, 1])
    assert all(0 <= hashed_reward([t]) < 1 for t in range(VOCAB))


def test_a_bench_without_work_or_with_another_dtype_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to time"):
        StepBench(str(folder), [], 4, 6, "float32", 1e-3, 0)
    with pytest.raises(ConfigError, match="float16"):
        StepBench(str(folder), PROMPTS, 4, 6, "float16", 1e-3, 0)
    with pytest.raises(ConfigError, match="device 'nowhere' cannot be used"):
        StepBench(str(folder), PROMPTS, 4, 6, "float32", 1e-3, 0, device="nowhere")
