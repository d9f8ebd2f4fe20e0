"""The model card says what the run directory says, and nothing from outside can break it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from unipo.command.train import read
from unipo.evaluate.record import keep
from unipo.markdown import fenced, inline, table
from unipo.registry import get_method
from unipo.starter import shapes_path, starter_path
from unipo.training.card import model_card, write_card
from unipo.training.checkpoint import verify_checkpoint
from unipo.training.run import train
from unipo.training.saved import Saved, find_saved

from .conftest import quick


def front(card: str) -> dict[str, Any]:
    _, text, _ = card.split("---\n", 2)
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def block(card: str, language: str) -> str:
    found = re.search(rf"^(`{{3,}}){language}\n(.*?)\n\1$", card, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "a_run|with *odd* <b>name</b>"
    quick(run, "dapo", steps=2, **{"set": {"objective.high": 0.3}, "sampling.max_tokens": 8})
    return run


def card_of(run: Path, step: int = 2) -> str:
    return (run / "checkpoints" / f"step-{step:06d}" / "model" / "README.md").read_text()


def test_a_card_gives_method_changes_scores_and_settings(finished: Path) -> None:
    card = card_of(finished)
    assert (finished / "method.txt").read_text().strip() in block(card, "text")
    assert "| `objective.high` | 0.28 | 0.3 |" in card
    assert "Changed from grpo-token:" in card or f"Changed from {get_method('dapo').parent}:" in card
    rows = [json.loads(line) for line in (finished / "evaluations.jsonl").read_text().splitlines()]
    for when, row in zip(("before", "after"), rows, strict=True):
        value = f"{100 * row['accuracy']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        assert f"| scratchpad | {when} | score | {value} | 8 x 1 | 1 |" in card
    assert f"torch {__import__('torch').__version__}" in card
    assert get_method("dapo").paper.arxiv in block(card, "bibtex")


def test_the_settings_of_a_card_make_the_same_run_again(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(block(card_of(finished), "yaml"))
    again = read(["--config", str(tmp_path / "run.yaml")]).config
    assert (again.method, again.steps, again.set) == ("dapo", 2, {"objective.high": 0.3})
    assert again.policy.model == "starter"
    result = train(replace(again, run=str(tmp_path / "again")))
    first, second = (
        (r / "checkpoints" / "step-000002" / "model" / "model.safetensors").read_bytes()
        for r in (finished, Path(result.run))
    )
    assert first == second


def test_the_front_matter_is_what_the_hub_reads(finished: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(card_of(finished))
    assert card.data.library_name == "transformers"
    assert card.data.tags == ["unipo", "reinforcement-learning", "dapo"]
    (result,) = card.data.eval_results
    after = json.loads((finished / "evaluations.jsonl").read_text().splitlines()[-1])
    assert result.metric_value == pytest.approx(after["accuracy"], abs=1e-6)
    assert result.dataset_name == "scratchpad"


def test_a_card_may_be_edited_without_damaging_the_checkpoint(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    checkpoint = run / "checkpoints" / "step-000002"
    (checkpoint / "model" / "README.md").write_text("mine")
    assert verify_checkpoint(checkpoint) is None


def test_evaluations_that_came_later_join_the_card(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    curve = {"1": {"value": 0.25, "low": 0.1, "high": 0.5}, "4": {"value": 0.5, "low": 0.3, "high": 0.7}}
    record = {
        "model": "m",
        "task": "data/te|st.jsonl",
        "reward": "maths",
        "problems": 9,
        "k": 4,
        "temperature": 0.5,
        "accuracy": {"accuracy": 0.25, "low": 0.1, "high": 0.5},
        "pass": curve,
        "majority": curve,
    }
    keep(record, Saved(run, run, 2))
    keep({**record, "k": 1}, Saved(run, run, 1))  # of another step
    keep({**record, "task": "countdown", "data": {"task": "countdown?numbers=3"}}, Saved(run, run, 2))
    write_card(run / "checkpoints" / "step-000002" / "model", run, 2, get_method("dapo"))
    card = card_of(run)
    for measure, value in (
        ("average@4", "25.0 % [10.0, 50.0]"),
        ("pass@4", "50.0 % [30.0, 70.0]"),
        ("maj@4", "50.0 % [30.0, 70.0]"),
    ):
        assert f"| te&#124;st.jsonl | after | {measure} | {value} | 9 x 4 | 0.5 |" in card
    assert "@1" not in card
    assert "| countdown?numbers=3 | after | average@4 |" in card
    assert {m["metrics"][0]["type"] for m in front(card)["model-index"][0]["results"]} == {
        "score",
        "average@4",
        "pass@4",
        "maj@4",
    }


def test_the_harness_own_numbers_join_the_card_as_they_are(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    results = {"gsm8k": {"exact_match,strict": {"value": 0.5, "standard_error": 0.05}}}
    results["wikitext"] = {"word_perplexity,none": {"value": 12.25, "standard_error": None}}  # type: ignore[dict-item]
    keep({"harness": ["gsm8k"], "results": results, "samples": {"gsm8k": 100, "wikitext": 7}}, Saved(run, run, 2))
    card = model_card(run, 2, get_method("dapo"))
    assert "| gsm8k \\(lm-eval\\) | after | exact\\_match,strict | 0.5000 [0.4020, 0.5980] | 100 x 1 |" in card
    assert "word\\_perplexity,none | 12.2500 | 7 x 1 |" in card


def test_versions_are_those_of_the_training_not_of_the_writing(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    (run / "events.jsonl").write_text(
        '{"step": 0, "event": "started", "torch": "1.0", "unipo": "0.0"}\n'
        '{"step": 1, "event": "started", "torch": "1.1", "unipo": "0.0"}\n'
        '{"step": 2, "event": "started", "torch": "1.2", "unipo": "0.0"}\n{"step": 2, "eve'
    )
    assert "torch 1.0, then 1.1\nunipo 0.0\n" in model_card(run, 2, get_method("dapo"))


def test_what_comes_from_outside_cannot_break_the_card(tmp_path: Path) -> None:
    evil = "x```\n---\n# Injected <script>alert(1)</script> | [a](javascript:b)"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"method": "grpo", "data": {"data": evil, "reward": evil}}))
    card = model_card(tmp_path, 3, get_method("grpo"))
    shown = re.sub(r"^(`{3,})\w*\n.*?\n\1$", "", card.split("---\n", 2)[2], flags=re.MULTILINE | re.DOTALL)
    assert "<script>" not in shown
    assert not re.search("^# Injected", shown, re.MULTILINE)
    assert "](javascript" not in shown
    assert yaml.safe_load(block(card, "yaml"))["data"] == {"data": evil, "reward": evil}
    assert [line for line in card.splitlines() if line.startswith("#")][-2:] == ["## Versions", "## Citation"]


@pytest.mark.parametrize(("name", "path"), [("starter", starter_path), ("shapes", shapes_path)])
def test_a_shipped_model_has_its_name_and_no_path_of_this_machine(
    tmp_path: Path, name: str, path: Callable[[], Path]
) -> None:
    config = {"method": "grpo", "policy": {"model": str(path())}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    card = model_card(tmp_path, 3, get_method("grpo"))
    assert "that is shipped with unipo, post-trained with" in card
    assert yaml.safe_load(block(card, "yaml"))["policy"]["model"] == name
    assert str(path()) not in card


def test_inline_text_stays_itself_in_a_table() -> None:
    assert inline("a|b*c_<d>\n`e`") == "a&#124;b\\*c\\_&lt;d&gt; \\`e\\`"
    assert table(["x"], [[inline("a|b")]]).splitlines()[-1] == "| a&#124;b |"


def test_a_fence_is_longer_than_any_inside() -> None:
    assert fenced("a\n````\nb").splitlines() == ["`````", "a", "````", "b", "`````"]


def test_adapters_say_so(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    quick(tmp_path / "run", steps=1, **{"policy.lora.rank": 2, "sampling.max_tokens": 4, "eval.prompts": 2})
    card = card_of(tmp_path / "run", 1)
    assert front(card)["library_name"] == "peft"
    assert "AutoPeftModelForCausalLM" in block(card, "python")
    assert find_saved(tmp_path / "run") == Saved(tmp_path / "run/checkpoints/step-000001/model", tmp_path / "run", 1)
