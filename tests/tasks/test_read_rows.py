"""Reading rows: each format gives the same rows, and each kind of damage names its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from unipo.errors import ConfigError, DataError
from unipo.tasks.data import is_hub_id, read_rows

ROWS = [{"question": "1 + 1?", "answer": "2"}, {"question": "two,\nlines “q”", "answer": "x"}]


def _jsonl(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


def _csv() -> str:
    return 'question,answer\r\n1 + 1?,2\r\n"two,\nlines “q”",x\r\n'


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", _jsonl(ROWS)),
        ("a.ndjson", _jsonl(ROWS)),
        ("a.json", json.dumps(ROWS)),
        ("a.csv", _csv()),
        ("a.tsv", _csv().replace("question,answer", "question\tanswer").replace("?,2", "?\t2").replace('",x', '"\tx')),
    ],
)
def test_every_text_format_gives_the_same_rows_zipped_or_not(
    tmp_path: Path, name: str, text: str, zipped: bool
) -> None:
    path = tmp_path / (name + ".gz" if zipped else name)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    assert read_rows(path) == ROWS


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet") == ROWS
    assert read_rows(tmp_path / "a.parquet", limit=1) == ROWS[:1]


def test_a_file_that_is_not_parquet_is_said_to_be_none(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(DataError, match=r"a\.parquet is not a readable Parquet file"):
        read_rows(tmp_path / "a.parquet")


def test_a_directory_saved_by_datasets_is_read_split_by_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one, two = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:1])
    one.save_to_disk(str(tmp_path / "single"))
    datasets.DatasetDict(train=one, test=two).save_to_disk(str(tmp_path / "both"))
    assert read_rows(tmp_path / "single") == ROWS
    assert read_rows(tmp_path / "both", split="test") == ROWS[:1]
    assert read_rows(tmp_path / "both", split="train", limit=1) == ROWS[:1]
    with pytest.raises(DataError, match=r"has the splits train, test; choose one with --data\.split NAME"):
        read_rows(tmp_path / "both")
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        read_rows(tmp_path / "both", split="dev")


def test_a_directory_of_data_files_is_read_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "train.jsonl").write_text(_jsonl(ROWS))
    (folder / "test.jsonl").write_text(_jsonl(ROWS[1:]))
    assert read_rows(folder, split="train") == ROWS
    assert read_rows(folder, split="test") == ROWS[1:]


def test_an_unreadable_directory_is_an_error_about_that_directory(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"cannot read the directory .*empty"):
        read_rows(tmp_path / "empty")


def test_malformed_json_names_its_line_and_shows_its_start(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2\n{"a": 3}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 3: not JSON .* it starts '\{\"a\": 2'"):
        read_rows(path)


def test_a_row_that_is_no_object_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n[1]\n')
    with pytest.raises(DataError, match=r"line 2: a row must be an object with named fields, got list"):
        read_rows(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text('{"data": []}')
    with pytest.raises(DataError, match="must hold a list of objects, it holds one dict with keys data"):
        read_rows(tmp_path / "a.json")


def test_jsonl_named_json_is_told_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(_jsonl(ROWS))
    with pytest.raises(DataError, match=r"line 2: not JSON \(Extra data.*\.jsonl: rename it"):
        read_rows(tmp_path / "a.json")


def test_a_csv_row_with_too_many_or_too_few_values_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(DataError, match="line 3: 3 values for the 2 fields"):
        read_rows(path)
    path.write_text("a,b\n1\n")
    with pytest.raises(DataError, match="line 2: 1 values for the 2 fields"):
        read_rows(path)
    path.write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match="line 1: field names must be distinct"):
        read_rows(path)


def test_a_csv_field_longer_than_the_library_default_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n" + "x" * 200_000 + "\n")
    assert len(read_rows(tmp_path / "a.csv")[0]["a"]) == 200_000


def test_damaged_bytes_are_an_error_and_not_a_shorter_dataset(tmp_path: Path) -> None:
    whole = gzip.compress(_jsonl(ROWS * 500).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "a.jsonl.gz")
    for place in range(10, len(whole) - 8):  # between the header and the checksum
        (tmp_path / "a.jsonl.gz").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(DataError):
            read_rows(tmp_path / "a.jsonl.gz")
    (tmp_path / "b.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "b.jsonl")


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    for name, text in {"a.jsonl": "\n\n", "a.json": "[]", "b.json": "", "a.csv": "q,a\n", "b.csv": ""}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match="has no rows"):
            read_rows(tmp_path / name)


def test_a_missing_file_suggests_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(_jsonl(ROWS))
    with pytest.raises(DataError, match=r"did you mean '.*train\.jsonl'"):
        read_rows(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match=r"/\S+ holds: train\.jsonl"):
        read_rows(tmp_path / "zzzzzzzz.csv")
    with pytest.raises(DataError, match=r"its directory .* does not exist"):
        read_rows(tmp_path / "no" / "a.csv")


def test_a_format_that_the_name_does_not_tell_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("{}")
    with pytest.raises(DataError, match="cannot tell the format"):
        read_rows(tmp_path / "rows.txt")


def test_a_file_has_no_splits_and_a_limit_is_positive(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(_jsonl(ROWS))
    assert read_rows(tmp_path / "a.jsonl", limit=1) == ROWS[:1]
    with pytest.raises(DataError, match="one file and has no splits"):
        read_rows(tmp_path / "a.jsonl", split="train")
    with pytest.raises(ConfigError, match="at least 1"):
        read_rows(tmp_path / "a.jsonl", limit=0)


def test_limit_stops_before_later_damage(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\nbroken\n')
    assert read_rows(tmp_path / "a.jsonl", limit=1) == [{"a": 1}]


def test_only_org_slash_name_without_a_data_ending_or_a_path_is_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "here").mkdir()
    assert is_hub_id("openai/gsm8k")
    assert is_hub_id("openai/gsm8k:main")
    for other in ("gsm8k", "data/train.jsonl", "a/b/c", "/abs/path", "./x/y", "org/here", "a b/c"):
        assert not is_hub_id(other), other


def test_a_mistyped_local_file_is_never_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(_jsonl(ROWS))
    with pytest.raises(DataError, match=r"did you mean 'data/train\.jsonl'"):
        read_rows("data/trian.jsonl")
