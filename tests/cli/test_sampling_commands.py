from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from unipo.command.evaluate import Measured, estimates

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
        *("generate", "starter", "--data", "ask.jsonl", "--data-prompt", "q", "--limit", 1),
        *("--stop", "=", "--temperature", 0, "--json"),
    )
    (record,) = [json.loads(text) for text in said.out.splitlines()]
    assert record["text"].endswith("=")
    assert record["truncated"] is False


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


def test_estimates_by_hand() -> None:
    measured = Measured(
        scores=[[1.0, 0.0, 0.0, 1.0], [0.0] * 4],
        answers=[["7", "8", "8", "7"], ["1", None, "2", "3"]],
        truncated=0.0,
        length=1.0,
    )
    found = estimates(measured, 4)
    assert found["accuracy"]["accuracy"] == 0.25
    assert found["pass"]["2"]["value"] == pytest.approx((5 / 6) / 2)  # both wrong in 1 of 6 pairs
    assert found["pass_hat"]["2"]["value"] == pytest.approx((1 / 6) / 2)
    assert found["majority"]["4"]["value"] == pytest.approx(0.5 / 2)  # two votes each


def test_no_majority_where_the_reward_judges_more_than_the_answer() -> None:
    mixed = Measured([[1.0, 0.0]], [["7", "7"]], 0.0, 1.0)
    assert "majority" not in estimates(mixed, 2)


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
