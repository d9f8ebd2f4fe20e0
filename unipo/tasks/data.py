"""Rows from files, local dataset directories and the Hugging Face hub: every source becomes a list of dicts.

What is read is decided by the name alone: an existing directory is a saved dataset or a folder of data
files, a name with a known ending is a file, and only `org/name` (or `org/name:config`) that is no path on
this machine is asked of the hub.  Nothing is guessed from the bytes of a file.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from unipo.errors import ConfigError, DataError, MissingExtra

Row = dict[str, Any]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")


def read_rows(source: str | Path, split: str | None = None, limit: int | None = None) -> list[Row]:
    """All rows of a data source, in its order.

    source: a .jsonl, .json (one list of objects), .csv or .tsv file, each also with .gz; a .parquet file; a
        directory that `datasets` wrote or can load; a hub id `org/name` or `org/name:config`.
    split: which split of a directory or hub dataset; may be left out where there is only one.
    limit: read the first so many rows.
    CSV values are text, as the format has no types.  Blank lines of JSONL are passed over.
    Raises DataError: missing or empty source, malformed content (with line), a split that is not there.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}")
    path = Path(source)
    if path.is_dir():
        rows = _from_directory(path, split, limit)
    elif looks_like_file(source):
        rows = _from_file(path, split, limit)
    elif is_hub_id(source):
        rows = _from_hub(str(source), split, limit)
    else:
        raise _missing(path)
    if not rows:
        raise DataError(f"{source} has no rows")
    return rows


def looks_like_file(source: str | Path) -> bool:
    """Whether this names a data file: it exists as a file, or ends like one."""
    return Path(source).is_file() or _format(Path(source)) is not None


def is_hub_id(source: str | Path) -> bool:
    """Whether this has the form org/name or org/name:config, and is neither a path here nor named like a file."""
    text = str(source)
    return bool(_HUB_ID.fullmatch(text)) and not Path(text).exists() and _format(Path(text)) is None


def _format(path: Path) -> str | None:
    name = path.name.lower().removesuffix(".gz")
    return next((ending for ending in _READERS if name.endswith(ending)), None)


# -- files ---------------------------------------------------------------------------------------
def _from_file(path: Path, split: str | None, limit: int | None) -> list[Row]:
    if not path.is_file():
        raise _missing(path)
    if split is not None:
        raise DataError(f"{path} is one file and has no splits, but --data.split {split} was given; leave it out")
    ending = _format(path)
    if ending is None:
        known = ", ".join(_READERS)
        raise DataError(f"cannot tell the format of {path} from its name; known endings: {known} (text also with .gz)")
    return list(islice(_READERS[ending](path), limit))


def _missing(path: Path) -> DataError:
    folder = path.parent
    if not folder.is_dir():
        return DataError(f"there is no file {path}: its directory {folder} does not exist")
    names = sorted(p.name for p in folder.iterdir())
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    hint = (
        f"did you mean {str(folder / close[0])!r}?"
        if close
        else f"{folder.resolve()} holds: {', '.join(names[:10]) or 'nothing'}"
    )
    return DataError(f"there is no file or dataset {path}; {hint}")


def _open_text(path: Path) -> IO[str]:
    # utf-8-sig reads files with and without a byte-order mark, which would otherwise spoil the first field name.
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open("r", encoding="utf-8-sig", newline="")


def _lines(path: Path, stream: Iterable[str]) -> Iterator[str]:
    """The lines of a stream, with damage in the bytes reported at its line."""
    number = 0
    try:
        for line in stream:
            number += 1
            yield line
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}, after line {number}: cannot be read ({error})") from error


def _read_jsonl(path: Path) -> Iterator[Row]:
    with _open_text(path) as stream:
        for number, line in enumerate(_lines(path, stream), start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                start = line.strip()[:60]
                raise DataError(
                    f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}); it starts {start!r}"
                ) from error
            yield _as_row(value, f"{path}, line {number}")


def _read_json(path: Path) -> Iterator[Row]:
    with _open_text(path) as stream:
        text = "".join(_lines(path, stream))
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; one object per line is the format of .jsonl: rename it" if error.msg == "Extra data" else ""
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno}){hint}") from error
    if not isinstance(value, list):
        inside = f" with keys {', '.join(value)}" if isinstance(value, dict) else ""
        raise DataError(f"{path} must hold a list of objects, it holds one {type(value).__name__}{inside}")
    for number, item in enumerate(value, start=1):
        yield _as_row(item, f"{path}, item {number}")


def _as_row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a row must be an object with named fields, got {type(value).__name__}")
    return value


def _read_csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    # The library's 131,072 characters per field are fewer than a long conversation has.
    previous = csv.field_size_limit(sys.maxsize)
    try:
        with _open_text(path) as stream:
            reader = csv.DictReader(_lines(path, stream), delimiter=delimiter, strict=True)
            names = list(reader.fieldnames or [])
            if len(set(names)) != len(names) or "" in names:
                raise DataError(f"{path}, line 1: field names must be distinct and not empty, got {names}")
            for row in reader:
                if None in row or None in row.values():
                    count = len(names) + len(row.get(None) or []) - sum(v is None for v in row.values())
                    raise DataError(
                        f"{path}, line {reader.line_num}: {count} values for the {len(names)} fields {names}"
                    )
                yield dict(row)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not CSV ({error})") from error
    finally:
        csv.field_size_limit(previous)


def _read_tsv(path: Path) -> Iterator[Row]:
    return _read_csv(path, delimiter="\t")


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "tasks", "reading Parquet") from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file ({error})") from error


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}


# -- directories and the hub ---------------------------------------------------------------------
def _datasets(purpose: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "tasks", purpose) from error
    return datasets


def _from_directory(path: Path, split: str | None, limit: int | None) -> list[Row]:
    datasets = _datasets(f"reading the directory {path}")
    saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    try:
        loaded = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path))
    except Exception as error:  # whatever a third-party loader raises is shown, with the directory it was about
        raise DataError(f"datasets cannot read the directory {path}: {_short(error)}") from error
    return _take(_choose_split(loaded, split, str(path)), limit)


def _from_hub(name: str, split: str | None, limit: int | None) -> list[Row]:
    datasets = _datasets(f"reading {name} from the Hugging Face hub")
    repository, _, config = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, config or None)
    except Exception as error:  # network, permission, missing config: all are said as they are
        raise DataError(
            f"there is no path {name!r} here, and datasets cannot load it from the hub: {_short(error)} "
            "(a configuration is chosen with 'org/name:config')"
        ) from error
    return _take(_choose_split(loaded, split, name), limit)


def _choose_split(loaded: Any, split: str | None, where: str) -> Any:
    if not isinstance(loaded, dict):
        if split is not None and str(loaded.split) != split:
            raise DataError(f"{where} holds a single split ({loaded.split}), not {split!r}")
        return loaded
    names = list(loaded)
    if split is None and len(names) == 1:
        return loaded[names[0]]
    if split is None:
        raise DataError(f"{where} has the splits {', '.join(names)}; choose one with --data.split NAME")
    if split not in names:
        raise DataError(f"{where} has no split {split!r}; it has {', '.join(names)}")
    return loaded[split]


def _take(dataset: Any, limit: int | None) -> list[Row]:
    count = len(dataset) if limit is None else min(limit, len(dataset))
    return [dict(row) for row in dataset.select(range(count))]


def _short(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0] if first else ''}"[:300]
