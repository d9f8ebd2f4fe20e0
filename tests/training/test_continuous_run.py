"""CoT2 through the front door: taught by distributions, then improved by GRPO on continuous tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import unipo
from tests.training.conftest import metrics, weights
from unipo.errors import DataError
from unipo.starter.mnns import mnns_tokenizer, save_mnns_model
from unipo.tasks.mnns import mnns_task, vocabulary
from unipo.tasks.task import Example
from unipo.training.continuous import StepEncoder, step_columns

TASK = "mnns?digits=3&largest=4"


def run(folder: Path, model: Path, method: str, steps: int, **settings: Any) -> Any:
    base = {
        "policy.model": str(model),
        "data.task": TASK,
        "sampling.max_tokens": 8,
        "eval.prompts": 16,
        "prompts": 8,
        "log.progress": False,
        "run": str(folder),
    }
    return unipo.train(method=method, steps=steps, **(base | settings))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mnns_model(tmp_path_factory.mktemp("mnns"), hidden=16, digits=3, largest=4)


@pytest.fixture(scope="module")
def taught(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("csft")
    run(folder, model, "cot2-csft", 60, **{"optim.learning_rate": 1e-2, "prompts": 16})
    losses = [m["loss"] for m in metrics(folder)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert min(losses) > 0  # a divergence and a cross-entropy
    return folder / "checkpoints" / "step-000060" / "model"


@pytest.mark.parametrize("method", ["cot2-grpo", "cot2-grpo-dirichlet"])
def test_policy_optimisation_goes_on_from_there_and_resumes_bit_by_bit(
    taught: Path, tmp_path: Path, method: str
) -> None:
    settings = {"set": {"source.steps": 3, "regularisers.0.beta": 0.1}, "optim.learning_rate": 1e-3, "save.every": 2}
    run(tmp_path / "whole", taught, method, 4, **settings)
    logged = metrics(tmp_path / "whole")
    assert len(logged) == 4
    assert max(m["grad_norm"] for m in logged) > 0
    assert max(m["gap/max"] for m in logged if "gap/max" in m) < 1e-2

    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-000004")
    run(tmp_path / "again", taught, method, 4, resume=True, **settings)
    for name, value in weights(tmp_path / "whole", 4).items():
        assert torch.equal(value, weights(tmp_path / "again", 4)[name])
    assert metrics(tmp_path / "again") == logged
    first = json.loads((tmp_path / "whole" / "completions.jsonl").read_text().splitlines()[0])
    assert len(first["tokens"]) == 3
    assert first["text"].split()[-1].startswith("S") or first["reward"] == 0


def test_evaluation_at_temperature_zero_is_base_cot2(taught: Path, tmp_path: Path) -> None:
    result = run(tmp_path, taught, "cot2-grpo", 0, **{"set": {"source.steps": 3}, "eval.temperature": 0.0})
    assert result is not None
    assert (tmp_path / "evaluations.jsonl").read_text().count("\n") >= 1


def test_the_model_of_the_task_knows_every_word_as_one_token() -> None:
    tokenizer = mnns_tokenizer(3, 4)
    for word in vocabulary(3, 4):
        assert len(tokenizer.encode(word, add_special_tokens=False)) == 1
    assert tokenizer.decode(tokenizer.encode("S-3 S0 S12")) == "S-3 S0 S12"


def test_soft_targets_become_columns() -> None:
    tokenizer = mnns_tokenizer(3, 4)
    example = next(e for e in mnns_task(digits=3, largest=4).train if e.row["digits"][:2] == [1, 2])
    prompt = StepEncoder(tokenizer, 64)(example, (1, 2, 3))
    columns = step_columns([prompt.steps, prompt.steps[:1]])
    assert columns["step_ids"].shape == (4, 4)
    assert [len(s) for s in prompt.steps] == [2, 4, 1]
    names = [tokenizer.convert_ids_to_tokens(i) for i in columns["step_ids"][1].tolist()]
    assert sorted(names) == ["S-1", "S-3", "S1", "S3"]
    assert columns["step_log_weights"][0].exp().tolist() == pytest.approx([0.5, 0.5, 0, 0])
    assert columns["step_log_weights"].exp().sum(-1).tolist() == pytest.approx([1.0] * 4)
    assert prompt.responses[0][-1] == tokenizer.convert_tokens_to_ids(example.answer)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (None, "no row"),
        ([{"S1": 0.5, "S2": 0.4}, {"S1": 1.0}], "add up to 1"),
        ([{"word": 1.0}], "one token"),
        ([{"S1 S2": 1.0}], "one token"),
        ([{"S1": 0.5, "S2": 0.5}], "ordinary token"),
        ([{"S1": 1.0, "S2": 0.0}, {"S1": 1.0}], "impossible"),
        ([{"S1": 1.0}] * 20, "positions"),
    ],
)
def test_bad_soft_targets_are_named(steps: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        StepEncoder(mnns_tokenizer(3, 4), 16)(Example("x", row={"steps": steps}), (1, 2))


def test_traces_that_are_too_few_or_uneven_are_named() -> None:
    tokenizer = mnns_tokenizer(3, 4)
    for row, traces, message in (
        ({"traces": [["S1", "S2"]]}, 2, "has 1 traces"),
        ({"traces": [["S1", "S2"], ["S1"]]}, 0, "all of one length"),
        ({"steps": [{"S1": 1.0}]}, 1, "no row"),
    ):
        with pytest.raises(DataError, match=message):
            StepEncoder(tokenizer, 16, traces)(Example("x", row=row), (1, 2))


def test_one_trace_teaches_what_ordinary_demonstrations_teach() -> None:
    tokenizer = mnns_tokenizer(3, 4)
    for example in mnns_task(digits=3, largest=4).train[:5]:
        prompt = StepEncoder(tokenizer, 64, 1)(example, (1, 2, 3))
        assert prompt.steps == tuple(((t, 1.0),) for t in prompt.responses[0])
        assert list(prompt.responses[0]) == tokenizer.encode(example.responses[0].text)
