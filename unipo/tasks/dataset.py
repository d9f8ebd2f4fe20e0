"""A task made of data: rows become examples, and a held-out part that shares no prompt with the rest."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unipo.errors import ConfigError, DataError
from unipo.tasks.data import read_rows
from unipo.tasks.fields import Fields, Kind
from unipo.tasks.pictures import picture_key
from unipo.tasks.rows import Examples, OnBadRow, to_examples
from unipo.tasks.task import Example, Message, Reward


@dataclass(frozen=True)
class DatasetTask:
    """Prompts and their reward. heldout: empty if none was asked for.

    description: which fields were read and how the data was divided.  events: what was left out, by reason.
    """

    name: str
    train: Sequence[Example]
    heldout: Sequence[Example] = ()
    reward: Reward | None = None
    description: str = ""
    events: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Heldout:
    """Where the held-out examples come from; at most one of the four.

    file: another data source.  split: another split of the same source.  fraction: of the distinct prompts,
    in (0, 1).  size: so many distinct prompts.  The last two choose by a hash of the prompt, so the choice
    does not depend on the order of the rows, and a prompt that stands twice stays on one side.
    """

    file: str | None = None
    split: str | None = None
    fraction: float | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("file", "split", "fraction", "size") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"held-out examples come from one place, but {' and '.join(given)} were given")
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise ConfigError(f"heldout.fraction must lie between 0 and 1, got {self.fraction}")
        if self.size is not None and self.size < 1:
            raise ConfigError(f"heldout.size must be at least 1, got {self.size}")

    @property
    def asked(self) -> bool:
        """Whether anything is to be held out."""
        return self != Heldout()


def dataset_task(
    source: str | Path,
    *,
    name: str | None = None,
    fields: Fields | None = None,
    kind: Kind = "auto",
    reward: Reward | None = None,
    split: str | None = None,
    limit: int | None = None,
    heldout: Heldout | None = None,
    on_bad_row: OnBadRow = "stop",
) -> DatasetTask:
    """Read a source (see `unipo.tasks.data.read_rows`) and divide it.

    limit: of the training source's rows.  Examples of a held-out file or split get ids after those of the
    training source, and are read with the field names found there.  A training prompt that is also in a held-out file or split leaves the training set,
    counted in `events` as "train prompt is held out".
    Raises DataError: unusable rows, or a side that would be empty.
    """
    heldout = heldout or Heldout()
    rows = read_rows(source, split, limit)
    read = to_examples(rows, fields, kind, str(source), on_bad_row)
    events = Counter(read.events)
    if heldout.file is not None or heldout.split is not None:
        other = _other(source, heldout, read.fields, kind, on_bad_row, len(rows))
        events.update(other.events)
        held: Sequence[Example] = other.examples
        train = without_prompts(read.examples, held)
        if dropped := len(read.examples) - len(train):
            events["train prompt is held out"] += dropped
    elif heldout.asked:
        train, held = divide(read.examples, heldout.fraction, heldout.size)
    else:
        train, held = list(read.examples), []
    if heldout.asked and not held:
        raise DataError(f"{source}: {heldout} leaves nothing held out of {len(read.examples)} examples; ask for more")
    if not train:
        raise DataError(f"{source}: every prompt is held out, and none is left to train on")
    description = f"{read.description}; {len(train)} to train on, {len(held)} held out"
    if dropped := events["train prompt is held out"]:
        description += f" ({dropped} left the training set because their prompt is held out)"
    return DatasetTask(name or _name(source), tuple(train), tuple(held), reward, description, dict(+events))


def _other(
    source: str | Path, heldout: Heldout, fields: Fields, kind: Kind, on_bad_row: OnBadRow, first_id: int
) -> Examples:
    where = heldout.file if heldout.file is not None else source
    rows = read_rows(where, heldout.split)
    label = f"{where} [{heldout.split}]" if heldout.split else str(where)
    return to_examples(rows, fields, kind, label, on_bad_row, first_id)


def _name(source: str | Path) -> str:
    return Path(source).name.split(".")[0] or str(source)


def prompt_key(prompt: str | Sequence[Message], images: Sequence[Any] = ()) -> str:
    """Hash of what a prompt says and shows: SHA-256 in hexadecimal. Text and the same text as one user message agree."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    said = json.dumps(messages, sort_keys=True, default=str)
    if images:
        said = json.dumps([said, *map(picture_key, images)])
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


def without_prompts(examples: Sequence[Example], held: Sequence[Example]) -> list[Example]:
    """The examples whose prompt is not among those of `held`."""
    taken = {prompt_key(e.prompt, e.images) for e in held}
    return [e for e in examples if prompt_key(e.prompt, e.images) not in taken]


def divide(
    examples: Sequence[Example], fraction: float | None = None, size: int | None = None
) -> tuple[list[Example], list[Example]]:
    """(train, held out) by prompt. fraction: a prompt is held out if hash / 2^256 < fraction, so its side never
    changes when rows are added; size: the prompts with the `size` smallest hashes are held out."""
    keys = [prompt_key(e.prompt, e.images) for e in examples]
    if size is not None:
        chosen = set(sorted(set(keys))[:size])
    else:
        chosen = {k for k in keys if int(k, 16) < (fraction or 0.0) * 2.0**256}
    train = [e for e, k in zip(examples, keys, strict=True) if k not in chosen]
    held = [e for e, k in zip(examples, keys, strict=True) if k in chosen]
    return train, held
