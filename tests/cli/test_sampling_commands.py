from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import unipo as library
from tests.training.conftest import quick, weights
from unipo.policy.model import load_policy
from unipo.policy.spec import PolicySpec

from .conftest import Said

Call = Callable[..., Said]


def test_generate_prints_one_json_line_per_response(unipo: Call) -> None:
    said = unipo(
        "generate", "starter", "--prompt", "47+85=", "--prompt", "12+13=", "--n", 2, "--max-tokens", 12, "--json"
    )
    records = [json.loads(text) for text in said.out.splitlines()]
    assert [r["prompt"] for r in records] == ["47+85=", "47+85=", "12+13=", "12+13="]
    for r in records:
        assert set(r) == {"prompt", "text", "tokens", "logp", "truncated"}
        assert len(r["tokens"]) == len(r["logp"]) <= 12
        assert all(x <= 0 for x in r["logp"])
        assert r["truncated"] == (len(r["tokens"]) == 12)


def test_generate_repeats_with_its_seed_and_reads_standard_input(unipo: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = []
    for seed in (1, 1, 2):
        monkeypatch.setattr("sys.stdin", io.StringIO("47+85=\n\n12*7=\n"))
        outputs.append(unipo("generate", "starter", "--seed", seed, "--n", 4, "--max-tokens", 24, "--json").out)
    assert outputs[0] == outputs[1] != outputs[2]
    assert outputs[0].count("\n") == 8


def test_generate_reads_data_and_stops_at_a_text(unipo: Call, tmp_path: Path) -> None:
    (tmp_path / "ask.jsonl").write_text('{"q": "47+85=", "answer": "132"}\n{"q": "12+13=", "answer": "25"}\n')
    said = unipo(
        *("generate", "starter", "--data", "ask.jsonl", "--data.fields.prompt", "q", "--limit", 1),
        *("--stop", "=", "--temperature", 0, "--json"),
    )
    (record,) = [json.loads(text) for text in said.out.splitlines()]
    assert record["text"].endswith("=")
    assert record["truncated"] is False


def test_generate_takes_the_settings_of_data_that_its_errors_name(unipo: Call, tmp_path: Path) -> None:
    (tmp_path / "two.jsonl").write_text('{"prompt": "1+1=", "question": "2+2="}\n{"question": "3+3="}\n')
    asked = ("generate", "starter", "--data", "two.jsonl", "--max-tokens", 2, "--json")
    said = unipo(*asked)
    assert said.status == 2
    assert "pass --data.fields.prompt NAME" in said.err
    said = unipo(*asked, "--data.fields.prompt", "prompt", "--data.bad-rows", "skip")
    assert (said.status, said.json["prompt"]) == (0, "1+1=")
    assert "left out: 1 x " in said.err
    assert "is one file and has no splits" in unipo(*asked, "--data.split", "test").err


def test_generate_for_people(unipo: Call) -> None:
    said = unipo("generate", "starter", "--prompt", "47+85=", "--n", 2, "--max-tokens", 4)
    assert [text[:4] for text in said.out.splitlines()] == ["[1] ", "[2] "]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--prompt", "a", "--data", "b"), "--prompt or --data"),
        (("--prompt", "a", "--n", "0"), "--n must be at least 1"),
        (("--prompt", "a", "--top-p", "0"), "0 < top_p <= 1"),
        (("--propmt", "a"), "did you mean --prompt"),
        (("--prompt", "1+1=", "--max-tokens", "100000"), "leaves no room for a prompt"),
    ],
)
def test_generate_refuses_what_cannot_work(unipo: Call, arguments: tuple[str, ...], complaint: str) -> None:
    said = unipo("generate", "starter", *arguments)
    assert said.status == 2
    assert complaint in said.err


def test_no_prompt_is_an_error(unipo: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert "holds no prompt" in unipo("generate", "starter").err


def test_eval_of_the_starter(unipo: Call) -> None:
    found = unipo("eval", "starter", "--limit", 8, "--k", 3, "--max-tokens", 32, "--json").json
    assert found["problems"] == 8
    accuracy = found["accuracy"]
    assert 0 <= accuracy["low"] <= accuracy["accuracy"] <= accuracy["high"] <= 1
    assert list(found["pass"]) == ["1", "2", "3"]
    values = [found["pass"][j]["value"] for j in ("1", "2", "3")]
    assert values == sorted(values)
    assert values[0] == pytest.approx(accuracy["accuracy"])
    assert found["pass_hat"]["1"] == found["pass"]["1"]
    assert found["majority"]["1"]["value"] == pytest.approx(values[0])


def test_eval_on_data_needs_a_reward_and_uses_every_row(unipo: Call, tmp_path: Path) -> None:
    rows = [{"question": f"{a}+11=", "answer": str(a + 11)} for a in (21, 32, 43)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    said = unipo("eval", "starter", "--data", "test.jsonl")
    assert said.status == 2
    assert "has no reward of its own" in said.err
    found = unipo("eval", "starter", "--data", "test.jsonl", "--reward", "numbers", "--max-tokens", 32, "--json").json
    assert found["problems"] == 3
    words = unipo("eval", "starter", "--data", "test.jsonl", "--reward", "numbers", "--max-tokens", 32, "--k", 2).out
    for text in ("average@2", "pass@j", "95 % interval", "3 problems"):
        assert text in words


def test_eval_of_another_model_asks_for_a_task(unipo: Call) -> None:
    assert "give --task NAME or --data FILE" in unipo("eval", "somewhere/else").err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the shipped model on the tasks of its defaults."""
    run = tmp_path_factory.mktemp("runs") / "short"
    library.train(
        method="grpo",
        steps=2,
        prompts=2,
        **{"run": str(run), "sampling.max_tokens": 24, "eval.prompts": 4, "log.progress": False, "save.every": 1},
    )
    return run


def test_eval_of_a_run_is_on_its_own_task_and_is_kept_there(unipo: Call, trained: Path) -> None:
    said = unipo("eval", trained, "--k", 2, "--limit", 6, "--json")
    assert said.json["task"].startswith("scratchpad(")
    assert said.json["max_tokens"] == 24
    assert (said.json["data"], said.json["compute"]) == ({"task": "scratchpad"}, "float32")
    (file,) = (trained / "evaluations").glob("*.json")
    assert str(file) in said.err
    record = json.loads(file.read_text())
    assert {k: record[k] for k in said.json} == said.json
    assert record["step"] == 2
    assert [len(p["responses"]) for p in record["each"]] == [2] * 6
    scores = [r["score"] for p in record["each"] for r in p["responses"]]
    assert sum(scores) / 12 == pytest.approx(said.json["accuracy"]["accuracy"])
    assert all(r["tokens"] <= 24 and isinstance(r["text"], str) for p in record["each"] for r in p["responses"])
    again = unipo("eval", trained / "checkpoints" / "step-000002" / "model", "--k", 2, "--limit", 6, "--json").json
    same = ("accuracy", "pass", "pass_hat", "length", "problems")
    assert {k: again[k] for k in same} == {k: said.json[k] for k in same}
    file.unlink()


def test_eval_and_generate_read_a_run_with_adapters(unipo: Call, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    quick(tmp_path / "run", steps=1, **{"policy.lora.rank": 2, "sampling.max_tokens": 8, "eval.prompts": 2})
    said = unipo("eval", "run", "--task", "scratchpad", "--limit", 2, "--max-tokens", 8)
    assert said.status == 0, said.err
    assert unipo("generate", "run", "--prompt", "47+85=", "--max-tokens", 8).status == 0


def test_all_weights_of_a_model_with_adapters_in_it_can_be_trained(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    quick(tmp_path / "run", steps=1, **{"policy.lora.rank": 2, "sampling.max_tokens": 8, "eval.prompts": 2})
    adapters = str(tmp_path / "run" / "checkpoints" / "step-000001" / "model")
    settings = {"policy.model": adapters, "data.task": "scratchpad", "eval.prompts": 2}
    quick(tmp_path / "whole", "sft", steps=1, **settings)
    name = "model.layers.0.mlp.up_proj.weight"
    before = load_policy(PolicySpec(model=adapters)).model.get_parameter(name)
    assert not torch.equal(weights(tmp_path / "whole", 1)[name], before)


def test_eval_against_another_model_pairs_the_same_problems(unipo: Call, trained: Path) -> None:
    found = unipo("eval", trained, "--against", "starter", "--k", 2, "--limit", 8, "--json").json
    own, other, c = found["accuracy"], found["against"]["accuracy"], found["comparison"]
    assert "each" not in found["against"]
    assert c["problems"] == 8
    assert c["average"]["2"]["value"] == pytest.approx(own["accuracy"] - other["accuracy"])
    assert c["pass"]["2"]["value"] == pytest.approx(
        found["pass"]["2"]["value"] - found["against"]["pass"]["2"]["value"]
    )
    assert c["test"]["better"] + c["test"]["equal"] + c["test"]["worse"] == 8
    assert 0 < c["test"]["p"] <= 1
    words = unipo("eval", trained, "--against", "starter", "--k", 2, "--limit", 8).out
    assert "less starter on 8 problems" in words
    assert "p = " in words


def test_a_model_against_itself_differs_in_nothing(unipo: Call) -> None:
    c = unipo("eval", "starter", "--against", "starter", "--limit", 4, "--max-tokens", 12, "--json").json["comparison"]
    assert c["average"]["1"] == {"value": 0.0, "low": None, "high": None}
    assert (c["test"]["equal"], c["test"]["p"]) == (4, 1.0)


def test_eval_out_writes_every_response(unipo: Call, tmp_path: Path) -> None:
    unipo("eval", "starter", "--limit", 2, "--max-tokens", 8, "--out", "found.json")
    record = json.loads((tmp_path / "found.json").read_text())
    assert len(record["each"]) == 2
    assert set(record["versions"]) == {"unipo", "torch", "transformers", "python"}


def test_eval_refuses_a_damaged_checkpoint_and_a_run_without_one(unipo: Call, tmp_path: Path, trained: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(trained, broken)
    weights = broken / "checkpoints" / "step-000002" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    said = unipo("eval", weights.parent)
    assert (said.status, "model.safetensors is damaged" in said.err) == (1, True)
    shutil.rmtree(broken / "checkpoints")
    (broken / "checkpoints").mkdir()
    assert "has no checkpoint yet" in unipo("eval", broken).err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--k", "0"), "--k must be at least 1"),
        (("--harness", "x", "--k", "2"), "leave out --k"),
        (("--harness", "x", "--stop", "a", "--reward", "maths"), "leave out --reward, --stop"),
        (("--harness", "x", "--temperature", "0", "--data.heldout.size", "2"), "--temperature, --data.heldout.size"),
        (("--agianst", "x"), "did you mean --against"),
    ],
)
def test_eval_refuses_what_cannot_work(unipo: Call, arguments: tuple[str, ...], complaint: str) -> None:
    said = unipo("eval", "starter", *arguments)
    assert said.status == 2
    assert complaint in said.err


def test_bench_measures_what_it_says(unipo: Call) -> None:
    found = unipo(
        *("bench", "--prompts", 2, "--group", 2, "--prompt-tokens", 5, "--max-tokens", 4, "--steps", 2, "--json")
    ).json
    for name in ("generation", "update", "step"):
        s = found["seconds"][name]
        assert 0 < s["low"] <= s["median"] <= s["high"]
    assert found["sampled_tokens_per_second"] == pytest.approx(16 / found["seconds"]["generation"]["median"])
    assert found["trained_positions_per_second"] == pytest.approx(22 / found["seconds"]["update"]["median"])
    assert "must all be at least 1" in unipo("bench", "--steps", 0).err


def test_bench_measures_the_device_that_training_takes(unipo: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("unipo.policy.model.torch.empty", lambda *shape, device: tried.append(device) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        unipo("bench")
    assert tried == ["cuda"]
