"""Held-out data: no prompt on both sides, whatever way it was divided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unipo.errors import ConfigError, DataError
from unipo.tasks.check import check_task
from unipo.tasks.dataset import DatasetTask, Heldout, dataset_task, divide, prompt_key
from unipo.tasks.task import Example, Task


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def _rows(*prompts: str) -> list[dict[str, Any]]:
    return [{"question": p, "answer": str(i)} for i, p in enumerate(prompts)]


def test_without_asking_nothing_is_held_out(tmp_path: Path) -> None:
    task = dataset_task(_write(tmp_path / "sums.jsonl", _rows("a", "b")))
    assert isinstance(task, Task)
    assert (task.name, len(task.train), len(task.heldout)) == ("sums", 2, 0)


@given(
    prompts=st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=60),
    fraction=st.floats(0.01, 0.99),
    size=st.integers(1, 20),
)
@settings(deadline=None)
def test_dividing_keeps_every_example_and_no_prompt_is_on_both_sides(
    prompts: list[str], fraction: float, size: int
) -> None:
    examples = [Example(p, id=i) for i, p in enumerate(prompts)]
    for train, held in (divide(examples, fraction=fraction), divide(examples, size=size)):
        assert sorted(e.id for e in [*train, *held]) == list(range(len(prompts)))
        assert not {e.prompt for e in train} & {e.prompt for e in held}
    _, held = divide(examples, size=size)
    assert len({e.prompt for e in held}) == min(size, len(set(prompts)))


def test_a_prompt_keeps_its_side_when_rows_are_added_or_reordered() -> None:
    examples = [Example(f"prompt {i}", id=i) for i in range(200)]
    _, held = divide(examples[:100][::-1], fraction=0.3)
    _, more = divide(examples, fraction=0.3)
    assert {e.id for e in held} == {e.id for e in more if e.id < 100}
    # 200 draws at 0.3: 60 expected, standard deviation 6.5
    assert 30 < len(more) < 90


def test_text_and_the_same_text_as_one_user_message_are_one_prompt() -> None:
    assert prompt_key("a") == prompt_key([{"role": "user", "content": "a"}])
    assert prompt_key("a") != prompt_key([{"role": "system", "content": "a"}])


def test_a_held_out_file_takes_its_prompts_out_of_training_and_says_so(tmp_path: Path) -> None:
    train = _write(tmp_path / "train.jsonl", _rows("a", "b", "a", "c"))
    test = _write(tmp_path / "test.jsonl", _rows("a", "d"))
    task = dataset_task(train, heldout=Heldout(file=str(test)))
    assert [e.prompt for e in task.train] == ["b", "c"]
    assert [(e.prompt, e.id) for e in task.heldout] == [("a", 4), ("d", 5)]
    assert task.events == {"train prompt is held out": 2}
    assert "2 left the training set" in task.description


def test_a_held_out_file_is_read_with_the_fields_of_the_training_file(tmp_path: Path) -> None:
    train = _write(tmp_path / "train.jsonl", [{"question": "a", "answer": "x #### 1"}])
    test = _write(tmp_path / "test.jsonl", [{"question": "b", "answer": "2"}])
    with pytest.raises(DataError, match=r"test\.jsonl, row 1: the answer .* has no '####'"):
        dataset_task(train, heldout=Heldout(file=str(test)))


def test_a_held_out_split_is_read_from_the_same_source(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    sides = {"train": _rows("a", "b"), "test": _rows("c")}
    both = datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in sides.items()})
    both.save_to_disk(str(tmp_path / "both"))
    task = dataset_task(tmp_path / "both", split="train", heldout=Heldout(split="test"))
    assert [e.prompt for e in task.train] == ["a", "b"]
    assert [e.prompt for e in task.heldout] == ["c"]


def test_an_empty_side_is_an_error_when_held_out_data_was_asked_for(tmp_path: Path) -> None:
    one = _write(tmp_path / "one.jsonl", _rows("a"))
    with pytest.raises(DataError, match="none is left to train on"):
        dataset_task(one, heldout=Heldout(size=1))
    with pytest.raises(DataError, match="none is left to train on"):
        dataset_task(one, heldout=Heldout(file=str(one)))
    with pytest.raises(DataError, match="nothing held out of 1 examples"):
        dataset_task(one, heldout=Heldout(fraction=1e-9))


def test_held_out_data_comes_from_one_place() -> None:
    with pytest.raises(ConfigError, match="fraction and size were given"):
        Heldout(fraction=0.1, size=3)
    for wrong in ({"fraction": 0.0}, {"fraction": 1.0}, {"size": 0}):
        with pytest.raises(ConfigError):
            Heldout(**wrong)  # type: ignore[arg-type]


def test_skipped_rows_of_both_files_are_counted(tmp_path: Path) -> None:
    train = _write(tmp_path / "train.jsonl", _rows("a", "", "b"))
    test = _write(tmp_path / "test.jsonl", _rows("c", " "))
    task = dataset_task(train, heldout=Heldout(file=str(test)), on_bad_row="skip")
    assert task.events == {"empty prompt": 2}
    assert isinstance(task, DatasetTask)
    assert check_task(task).train == 2
