"""Responses are written down token by token, and nothing that is trained changes by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import metrics, quick, weights
from unipo.batch import Batch
from unipo.layout import Layout
from unipo.training.record import chosen_rows, marked, method_record, pieces, short, token_records, watch


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text(encoding="utf-8").split("\n") if line]


def batch() -> Batch:
    """Three responses of 2, 1 and 2 tokens to one prompt."""
    layout = Layout.of([2, 1, 2], [3], [1])
    return Batch.of(
        layout,
        tokens=torch.tensor([1, 2, 3, 4, 5]),
        trainable=torch.tensor([True, True, True, False, True]),
        advantage=torch.tensor([0.5, 1.0, -1.0, 0.25, 0.25]),
        sequence_advantage=torch.tensor([0.5, -1.0, 0.0]),
        reward=torch.tensor([1.0, 0.0, 0.5]),
        behaviour_logp=torch.tensor([-1.23456, float("-inf"), -2.0, -3.0, -4.0]),
    )


# -- which ones ------------------------------------------------------------------------------------
def test_the_best_and_the_worst_are_recorded_first() -> None:
    assert chosen_rows(batch(), 8, 1) == [0]
    assert chosen_rows(batch(), 8, 2) == [0, 1]
    assert chosen_rows(batch(), 8, 9) == [0, 1, 2]
    assert chosen_rows(batch(), 8, 0) == []


def test_only_responses_that_are_written_down_are_recorded() -> None:
    assert chosen_rows(batch(), 1, 2) == [0]
    assert chosen_rows(batch().without("reward"), 2, 1) == [0]


# -- what is written -------------------------------------------------------------------------------
def test_a_record_holds_every_token_column_of_the_batch() -> None:
    (first, third) = token_records(
        batch(), [0, 2], {0: {"new_logp": [-1.0, None]}}, lambda ids: "".join(f"<{i}>" for i in ids)
    )
    assert first == {
        "row": 0,
        "pieces": ["<1>", "<2>"],
        "columns": {
            "trainable": 1,  # the same for all: written once
            "advantage": [0.5, 1.0],
            "behaviour_logp": [-1.235, None],  # no name for -inf in JSON
            "credit_weight": [1.0, 2.0],  # advantage over the response's 0.5
            "new_logp": [-1.0, None],
        },
    }
    assert third["columns"]["trainable"] == [0, 1]
    assert "credit_weight" not in third["columns"]  # of nothing, no share


def test_live_columns_of_recorded_responses_are_kept_where_they_were_computed() -> None:
    live = marked(batch(), [2]).with_columns(None, logp=torch.arange(5.0))
    kept: dict[int, dict[str, list[Any]]] = {}
    wanted = torch.tensor([True, True, True, False, True])
    watch(live.take_sequences([1, 2]), wanted[2:], torch.tensor([False, False, True]), kept)
    assert kept == {2: {"new_logp": [None, 4.0], "clipped": [None, True]}}
    watch(batch().with_columns(None, logp=torch.arange(5.0)), wanted, None, kept)
    assert set(kept) == {2}


def test_numbers_keep_four_digits() -> None:
    assert short(-1.23456e-7) == -1.235e-7
    assert short(float("nan")) is None


def test_pieces_are_the_text_and_a_letter_of_two_tokens_stands_at_its_last() -> None:
    def decode(ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    text = "aé b€"
    assert pieces(list(text.encode()), decode) == ["a", "", "é", " ", "b", "", "", "€"]
    assert pieces([], decode) == []
    assert "".join(pieces([0x61, 0xC3], decode)) == "a\ufffd"  # cut off in the middle of a letter


def test_pieces_of_a_tokeniser_that_swallows_leading_spaces() -> None:
    words = ["▁the", "▁sum", "s", "▁is"]

    def decode(ids: list[int]) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert pieces([0, 1, 2, 3], decode) == ["the", " sum", "s", " is"]


# -- in a run --------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["cepo", "dpo"])
def test_recording_changes_no_bit_of_a_run(method: str, tmp_path: Path) -> None:
    settings = {"eval.before": False, "eval.after": False}
    quick(tmp_path / "with", method, steps=2, **settings, **{"log.tokens": 4})
    quick(tmp_path / "without", method, steps=2, **settings, **{"log.tokens": 0})
    ours, theirs = (
        [{k: v for k, v in line.items() if k != "record/bytes"} for line in metrics(tmp_path / name)]
        for name in ("with", "without")
    )
    assert ours == theirs
    a, b = weights(tmp_path / "with", 2), weights(tmp_path / "without", 2)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not (tmp_path / "without" / "tokens.jsonl").exists()
    assert len(lines(tmp_path / "with", "tokens")) == 8


def test_a_run_records_texts_credit_ratio_and_evidence(tmp_path: Path) -> None:
    run = tmp_path / "run"
    quick(run, "cepo", steps=2, **{"set": {"source.epochs": 2}, "eval.before": False, "eval.after": False})
    done = lines(run, "completions")
    for record in lines(run, "tokens"):
        response = [c for c in done if c["step"] == record["step"]][record["row"]]
        n = len(response["tokens"])
        assert len(record["pieces"]) == n
        assert "".join(record["pieces"]).startswith(response["text"])  # and then perhaps an end token
        wanted = {"advantage", "behaviour_logp", "behaviour_entropy", "old_logp", "trainable", "mask", "evidence_logp"}
        assert wanted <= set(record["columns"])
        assert all(len(c) == n for c in record["columns"].values() if isinstance(c, list))
        if any(x != 0 for x in _full(record["columns"]["advantage"], n)):
            new = _full(record["columns"]["new_logp"], n)
            assert new != _full(record["columns"]["old_logp"], n), "the second epoch moved the policy"
            assert "clipped" in record["columns"]
    sizes = sum((run / f"{name}.jsonl").stat().st_size for name in ("completions", "tokens"))
    assert sum(m["record/bytes"] for m in metrics(run)) == sizes


def test_what_only_the_update_provides_is_recorded_too(tmp_path: Path) -> None:
    run = tmp_path / "run"
    changes = {"source.epochs": 2, "regularisers.0.beta": 0.1}
    quick(run, "grpo", steps=2, **{"set": changes, "eval.before": False, "eval.after": False})
    known = {name for record in lines(run, "tokens") for name in record["columns"]}
    assert {"old_logp", "new_logp", "reference_logp", "clipped"} <= known


def _full(value: Any, n: int) -> list[Any]:
    return value if isinstance(value, list) else [value] * n


def test_a_resumed_run_writes_the_same_records(tmp_path: Path) -> None:
    settings = {"eval.before": False, "eval.after": False}
    quick(tmp_path / "whole", steps=2, **settings)
    quick(tmp_path / "parted", steps=1, **settings)
    quick(tmp_path / "parted", steps=2, resume=True)
    for name in ("completions", "tokens"):
        assert lines(tmp_path / "whole", name) == lines(tmp_path / "parted", name)


def test_a_run_writes_down_what_its_method_changes(tmp_path: Path) -> None:
    import unipo

    record = method_record(unipo.get_method("dapo").but(**{"objective.high": 0.3}))
    assert record["parent"] is not None
    assert record["own_settings"] == [["objective.high", "0.28", "0.3"]]
    assert "objective.high" in [path for path, _, _ in record["diff"]]
    assert record["formula"] == unipo.get_method("dapo").but(**{"objective.high": 0.3}).explain().splitlines()
