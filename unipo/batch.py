"""Batch: ragged columns over a `Layout`, the one record every stage reads and extends.

A batch is never changed in place: `with_columns` returns a new one that shares the tensors.  Prompts are
stored once per group (level "context"); responses are flat (level "token").  A column is read as an
attribute, `batch.reward`, and a missing one says which stage would have made it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unipo.columns import COLUMNS
from unipo.errors import ConfigError, DataError
from unipo.layout import Layout

Value = Tensor | list[Any]
NO_IMAGES = torch.zeros(0, 3, 1, 1)  # a prompt in words, in a batch where others have images


def _level_of(name: str, level: str | None, levels: Mapping[str, str]) -> str:
    known = COLUMNS[name].level if name in COLUMNS else levels.get(name)
    if known is None and level is None:
        raise ConfigError(
            f"column {name!r} is new: say its level, with_columns(level='token'|'sequence'|..., {name}=...)"
        )
    if known is not None and level is not None and known != level:
        raise ConfigError(f"column {name!r} belongs to level {known!r}, not {level!r}")
    return known or level or ""


@dataclass(frozen=True, eq=False)
class Batch:
    """Columns at four levels over one layout.

    step: 1-based number of the update this batch feeds, for parts with a schedule; total_steps: of the run.
    states: what stateful parts remember (see `unipo.parts.part`), by part key.  sampled_reward: mean reward of all
    that was sampled for this update, before selections and shaping.
    """

    layout: Layout
    columns: Mapping[str, Value] = field(default_factory=dict)
    levels: Mapping[str, str] = field(default_factory=dict)
    step: int = 1
    total_steps: int = 1
    states: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sampled_reward: float | None = None

    @staticmethod
    def of(layout: Layout, **columns: Value) -> Batch:
        """A batch of known columns (see `unipo.columns`)."""
        return Batch(layout).with_columns(None, **columns)

    def with_columns(self, level: str | None = None, **columns: Value) -> Batch:
        """A new batch with these columns added or replaced; the row count of each is checked."""
        merged, levels = dict(self.columns), dict(self.levels)
        for name, value in columns.items():
            levels[name] = _level_of(name, level, levels)
            expected = self.layout.size(levels[name])
            if len(value) != expected:
                raise ValueError(f"column {name!r} is one row per {levels[name]} ({expected}), got {len(value)}")
            merged[name] = value
        return replace(self, columns=merged, levels=levels)

    def without(self, *names: str) -> Batch:
        """A new batch lacking these columns."""
        kept = {k: v for k, v in self.columns.items() if k not in names}
        return replace(self, columns=kept, levels={k: self.levels[k] for k in kept})

    def has(self, name: str) -> bool:
        """Whether there is a column of this name."""
        return name in self.columns

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "columns":
            raise AttributeError(name)
        if name in self.columns:
            return self.columns[name]
        made = f"; it exists after the {COLUMNS[name].stage} stage" if name in COLUMNS else ""
        raise AttributeError(f"this batch has no column {name!r}{made} (it has: {', '.join(sorted(self.columns))})")

    # -- selecting ---------------------------------------------------------------------------
    def take_sequences(self, index: Tensor | Sequence[int], drop_empty: bool = True) -> Batch:
        """The sequences at these indices, in ascending order; prompts left without any are dropped
        unless `drop_empty` is false. Group-level meaning (means, pairs) must have been used before."""
        layout = self.layout
        chosen = _indices(index, layout.n_sequences, layout.device)
        sizes = torch.bincount(layout.seq_prompt[chosen], minlength=layout.n_prompts)
        prompts = sizes.nonzero().flatten() if drop_empty else torch.arange(layout.n_prompts, device=layout.device)
        rows = {
            "sequence": chosen,
            "prompt": prompts,
            "token": _spans(layout.seq_starts[chosen], layout.seq_lengths[chosen]),
            "context": _spans(layout.context_starts[prompts], layout.context_lengths[prompts]),
        }
        kept = Layout(layout.seq_lengths[chosen], sizes[prompts], layout.context_lengths[prompts])
        columns = {name: _take(value, rows[self.levels[name]]) for name, value in self.columns.items()}
        return replace(self, layout=kept, columns=columns)

    def take_prompts(self, index: Tensor | Sequence[int]) -> Batch:
        """The prompts at these indices, with their whole groups, in ascending order."""
        layout = self.layout
        chosen = _indices(index, layout.n_prompts, layout.device)
        sequences = _spans(layout.group_starts[chosen], layout.group_sizes[chosen])
        if len(chosen) and bool((layout.group_sizes[chosen] == 0).any()):
            raise DataError("take_prompts: a chosen prompt has no sequences")
        return self.take_sequences(sequences)

    # -- splitting ---------------------------------------------------------------------------
    def split_prompts(self, parts: int) -> list[Batch]:
        """Cut into `parts` batches of whole groups, as equal in number of prompts as possible, in order."""
        if not 1 <= parts <= max(self.layout.n_prompts, 1):
            raise ConfigError(f"cannot cut {self.layout.n_prompts} prompts into {parts} minibatches")
        cuts = torch.arange(self.layout.n_prompts).tensor_split(parts)
        return [self.take_prompts(cut) for cut in cuts]

    def split_by_tokens(self, budget: int | None, whole_groups: bool = False) -> Iterator[Batch]:
        """Micro-batches of at most `budget` tokens, a shared prompt counted once per piece.

        A single sequence (or, with `whole_groups`, a single group) larger than the budget goes alone.
        None means one piece.
        """
        if self.layout.n_sequences == 0:
            return
        if budget is None:
            yield self
            return
        if budget <= 0:
            raise ConfigError(f"the token budget of a micro-batch must be positive, got {budget}")
        for piece in _plan_pieces(self.layout, budget, whole_groups):
            yield self.take_sequences(piece)

    @staticmethod
    def concat(batches: Sequence[Batch]) -> Batch:
        """One after the other. Columns must agree; metadata (step, states) is the first batch's."""
        if not batches:
            raise DataError("Batch.concat of nothing")
        first = batches[0]
        for other in batches[1:]:
            if set(other.columns) != set(first.columns):
                odd = sorted(set(other.columns) ^ set(first.columns))
                raise DataError(f"cannot concatenate batches whose columns differ: {', '.join(odd)}")
        layout = Layout(*(torch.cat([getattr(b.layout, name) for b in batches]) for name in _LAYOUT))
        columns: dict[str, Value] = {}
        for name, value in first.columns.items():
            rest = [b.columns[name] for b in batches]
            columns[name] = torch.cat(rest) if isinstance(value, Tensor) else [x for part in rest for x in part]  # type: ignore[arg-type]
        return replace(first, layout=layout, columns=columns)

    # -- moving and storing --------------------------------------------------------------------
    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        if torch.device(device) == self.layout.device:
            return self
        columns = {k: _moved(v, device) for k, v in self.columns.items()}
        return replace(self, layout=self.layout.to(device), columns=columns)

    def save(self, path: str | Path) -> None:
        """Write tensors, objects and states to one safetensors file (the last two as JSON in its metadata).

        A column that holds one tensor per row becomes as many tensors.

        Raises DataError for an object or state that JSON cannot hold; tuples come back as lists.
        """
        from safetensors.torch import save_file

        # Cloned because one tensor may stand in two columns, and safetensors refuses shared memory.
        tensors = {k: v.detach().clone().contiguous() for k, v in self.columns.items() if isinstance(v, Tensor)}
        piles = {k: v for k, v in self.columns.items() if _is_pile(v)}
        tensors |= {f"pile.{k}.{i}": x.detach().clone().contiguous() for k, v in piles.items() for i, x in enumerate(v)}
        objects = {k: v for k, v in self.columns.items() if not isinstance(v, Tensor) and k not in piles}
        tensors |= {f"layout.{name}": getattr(self.layout, name).clone().contiguous() for name in _LAYOUT}
        states = {key: dict(state) for key, state in self.states.items()}
        meta = {"levels": dict(self.levels), "step": self.step, "total_steps": self.total_steps}
        meta["sampled_reward"] = self.sampled_reward
        meta["piles"] = {k: len(v) for k, v in piles.items()}
        for name, value in (*objects.items(), ("states", states)):
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise DataError(f"cannot save {name!r} of this batch as JSON: {error}") from error
        text = json.dumps(meta | {"objects": objects, "states": states})
        save_file(tensors, str(path), metadata={"unipo_batch": text})

    @staticmethod
    def load(path: str | Path) -> Batch:
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(str(path), framework="pt") as file:  # type: ignore[no-untyped-call]
            meta = json.loads((file.metadata() or {}).get("unipo_batch", "null"))
            if meta is None:
                raise DataError(f"{path} is not a batch written by Batch.save")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is not a mapping)
        layout = Layout(*(tensors.pop(f"layout.{name}") for name in _LAYOUT))
        piles = {k: [tensors.pop(f"pile.{k}.{i}") for i in range(n)] for k, n in meta.get("piles", {}).items()}
        columns = tensors | piles | meta["objects"]
        said = {k: meta.get(k) for k in ("levels", "step", "total_steps", "states", "sampled_reward")}
        return Batch(layout, columns, **said)


_LAYOUT = ("seq_lengths", "group_sizes", "context_lengths")


def _indices(index: Tensor | Sequence[int], size: int, device: torch.device) -> Tensor:
    """Row numbers, ascending and unique, from numbers or a bool mask."""
    chosen = torch.as_tensor(index, device=device)
    if chosen.dtype == torch.bool:
        if len(chosen) != size:
            raise ValueError(f"a mask of {len(chosen)} for {size} rows")
        chosen = chosen.nonzero().flatten()
    chosen = chosen.to(torch.int64)
    if len(chosen) and (bool((chosen < 0).any()) or bool((chosen >= size).any())):
        raise IndexError(f"row numbers must lie in [0, {size}), got {int(chosen.min())}..{int(chosen.max())}")
    if len(chosen) > 1 and not bool((chosen.diff() > 0).all()):
        raise ValueError("row numbers must be ascending and unique: groups stay adjacent")
    return chosen


def _spans(starts: Tensor, lengths: Tensor) -> Tensor:
    """Row numbers of the half-open spans [start, start + length), concatenated."""
    total = int(lengths.sum())
    first = torch.repeat_interleave(starts - (lengths.cumsum(0) - lengths), lengths, output_size=total)
    return first + torch.arange(total, device=starts.device)


def _take(value: Value, rows: Tensor) -> Value:
    return value[rows] if isinstance(value, Tensor) else [value[i] for i in rows.tolist()]


def _is_pile(value: Value) -> bool:
    """Is this a column of one tensor per row, of sizes of their own?"""
    return isinstance(value, list) and len(value) > 0 and all(isinstance(x, Tensor) for x in value)


def _moved(value: Value, device: torch.device | str) -> Value:
    if isinstance(value, Tensor):
        return value.to(device)
    return [x.to(device) for x in value] if _is_pile(value) else value


def _plan_pieces(layout: Layout, budget: int, whole_groups: bool) -> list[list[int]]:
    lengths, sizes = layout.seq_lengths.tolist(), layout.group_sizes.tolist()
    pieces: list[list[int]] = []
    current: list[int] = []
    used, start = 0, 0
    for context, size in zip(layout.context_lengths.tolist(), sizes, strict=True):
        members = list(range(start, start + size))
        start += size
        units = [members] if whole_groups else [[m] for m in members]
        prompt_in_piece = False
        for unit in units:
            cost = sum(lengths[m] for m in unit)
            if current and used + cost + (0 if prompt_in_piece else context) > budget:
                pieces.append(current)
                current, used, prompt_in_piece = [], 0, False
            used += cost + (0 if prompt_in_piece else context)
            current, prompt_in_piece = current + unit, True
    if current:
        pieces.append(current)
    return pieces
