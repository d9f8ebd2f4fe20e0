"""lm-evaluation-harness on a saved model, with a task of this test's own: nothing is downloaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from unipo.errors import ConfigError, MissingExtra
from unipo.evaluate.harness import run_harness
from unipo.starter import starter_path

ROWS = [
    {"q": f"{a}+{b}=", "choices": [str(a + b), str(a + b + wrong)], "right": 0}
    for a, b, wrong in ((12, 13, 1), (47, 85, -10), (3, 4, 2), (61, 28, 7), (90, 15, -1), (8, 8, 40))
]


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtra, match=r"'lm-eval': pip install 'unipo\[lm-eval\]'"):
        run_harness(str(starter_path()), ["gsm8k"])


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A directory with the task "unipo_sums": which of two sums is likelier."""
    pytest.importorskip("lm_eval", reason="the extra unipo[lm-eval], which is not part of dev")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "sums.yaml").write_text(
        "task: unipo_sums\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder / 'sums.jsonl'}}}, cache_dir: {tmp_path / 'cache'}}}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: '{{q}}'\ndoc_to_choice: choices\ndoc_to_target: right\ntarget_delimiter: ''\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    return folder


def likelier(row: dict[str, object]) -> bool:
    """Is the right sum likelier, as plain transformers sees it?"""
    tokenizer = AutoTokenizer.from_pretrained(str(starter_path()))
    model = AutoModelForCausalLM.from_pretrained(str(starter_path()), dtype=torch.float32).eval()
    start = len(tokenizer(str(row["q"]), add_special_tokens=False).input_ids)
    found = []
    for choice in row["choices"]:  # type: ignore[attr-defined]
        ids = torch.tensor([tokenizer(str(row["q"]) + choice, add_special_tokens=False).input_ids])
        with torch.no_grad():
            logp = model(ids).logits[0].log_softmax(-1)
        found.append(float(logp[start - 1 : -1].gather(1, ids[0, start:, None]).sum()))
    return found[0] > found[1]


def test_its_numbers_are_those_of_the_model(tasks: Path) -> None:
    found = run_harness(str(starter_path()), ["unipo_sums"], tasks=str(tasks))
    expected = sum(map(likelier, ROWS)) / len(ROWS)
    metric = found["results"]["unipo_sums"]["acc,none"]
    assert metric["value"] == pytest.approx(expected)
    n = len(ROWS)
    assert metric["standard_error"] == pytest.approx((expected * (1 - expected) / (n - 1)) ** 0.5)
    assert found["samples"] == {"unipo_sums": n}


def test_a_limit_and_unknown_tasks(tasks: Path) -> None:
    found = run_harness(str(starter_path()), ["unipo_sums"], tasks=str(tasks), limit=2)
    assert found["samples"] == {"unipo_sums": 2}
    with pytest.raises(ConfigError, match="no task 'unipo_sum'; did you mean unipo_sums"):
        run_harness(str(starter_path()), ["unipo_sum"], tasks=str(tasks))
    with pytest.raises(ConfigError, match="is not a directory"):
        run_harness(str(starter_path()), ["unipo_sums"], tasks=str(tasks / "nowhere"))


def test_the_command_runs_it_and_keeps_it(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from unipo.cli import main

    out = tmp_path / "found.json"
    asked = ["eval", "starter", "--harness", "unipo_sums", "--harness-tasks", str(tasks), "--out", str(out)]
    assert main(asked) == 0
    assert "unipo_sums" in capsys.readouterr().out
    record = json.loads(out.read_text())
    assert record["harness"] == ["unipo_sums"]
    assert "lm-eval" in record["versions"]
