"""A run that was stopped anywhere continues to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import unipo
from tests.training.conftest import ASKED, every_method, metrics, own_task, quick, weights
from unipo.training.checkpoint import save_checkpoint

# Every method of the catalogue, with whatever makes its state richer: buffered prompts, an averaged reference, adapters.
RICHER: dict[str, dict[str, Any]] = {
    **{method: {"set": changes} for method, changes in ASKED.items()},
    "dapo": {"set": {"selection.0.surplus": "keep", "source.group_size": 4}},
    "dpo": {"policy.reference": "ema"},
    "rloo": {"policy.lora": {"rank": 4, "alpha": 8}},
    "gspo": {"set": {"source.minibatches": 2}, "policy.micro_tokens": 100},
    "unlikeliness-reward": {"set": {"source.group_size": 4}},
    "online-difficulty-filtering": {"set": {"source.group_size": 4, "selection.0.rounds": 2}},
    "dads-rulereasoner": {
        "set": {"source.group_size": 2, "curriculum.every": 1},
        "prompts": 6,
    },
    "clpo": {"set": {"curriculum.max_tokens": 8, "curriculum.shortest": 1}},
}


def assert_same_run(a: Path, b: Path, step: int) -> None:
    assert metrics(a) == metrics(b)
    ours, theirs = weights(a, step), weights(b, step)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("method", every_method())
def test_a_run_stopped_after_a_step_resumes_bit_for_bit(method: str, tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    settings = RICHER.get(method, {}) | own_task(method) | {"eval.before": False, "eval.after": False}
    if "policy.lora" in settings:
        pytest.importorskip("peft")
    quick(whole, method, steps=2, **settings)
    quick(parted, method, steps=1, **settings)
    quick(parted, method, steps=2, resume=True)
    assert_same_run(whole, parted, 2)


def test_a_run_killed_without_warning_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    quick(whole, steps=6, **{"save.every": 2})
    script = (
        "import sys; from pathlib import Path; from tests.training.conftest import quick;"
        "quick(Path(sys.argv[1]), steps=6, **{'save.every': 2})"
    )
    root = Path(unipo.__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(killed)], cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    log = killed / "metrics.jsonl"
    deadline = time.time() + 120
    while time.time() < deadline and not (log.exists() and len(log.read_text().splitlines()) >= 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    quick(killed, steps=6, resume=True)
    assert_same_run(whole, killed, 6)


def test_the_same_configuration_gives_the_same_bits(tmp_path: Path) -> None:
    quick(tmp_path / "a", steps=2)
    quick(tmp_path / "b", steps=2)
    assert_same_run(tmp_path / "a", tmp_path / "b", 2)


def test_an_interrupt_finishes_the_step_saves_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    once = [True]

    def interrupting(completion: str, answer: str) -> float:
        if once.pop() if once else False:
            os.kill(os.getpid(), signal.SIGINT)
        return float(len(completion) % 2)

    from unipo.rewards import FunctionReward

    reward = FunctionReward(interrupting, isolate=False)
    result = unipo.train(
        method="grpo", steps=50, prompts=2, run=str(run), reward=reward,
        **{"sampling.max_tokens": 8, "eval.before": False, "eval.after": False, "log.completions": 0},
    )  # fmt: skip
    assert result.interrupted
    assert 1 <= result.steps < 50
    assert len(metrics(run)) == result.steps
    assert (run / "checkpoints" / f"step-{result.steps:06d}" / "checksums.json").exists()
    assert f"--resume --run {run}" in capsys.readouterr().err


def test_a_saved_model_loads_with_plain_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quick(tmp_path / "run", steps=1)
    folder = tmp_path / "run" / "checkpoints" / "step-000001" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+2="}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert torch.isfinite(model(**ids).logits).all()


def test_an_interrupt_while_the_last_step_is_saved_leaves_out_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **settings: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return save_checkpoint(*args, **settings)

    monkeypatch.setattr("unipo.training.run.save_checkpoint", interrupted)
    result = quick(tmp_path / "run", steps=1, **{"eval.before": False})
    assert result.interrupted
    assert result.after is None
    assert (tmp_path / "run" / "checkpoints" / "step-000001" / "checksums.json").exists()


def test_changed_data_cannot_be_resumed(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    lines = [f'{{"prompt": "{i}+1=", "answer": "{i + 1}"}}\n' for i in range(6)]
    data.write_text("".join(lines))
    settings = {"data.data": str(data), "data.reward": "numbers", "eval.before": False, "eval.after": False}
    quick(tmp_path / "run", steps=1, **settings)
    data.write_text("".join(lines[:5]))
    with pytest.raises(unipo.errors.DataError, match=r"now there are 5 prompts\): the data changed"):
        quick(tmp_path / "run", steps=2, resume=True)
