"""What a run writes down about single responses, and token by token about a few of them.

completions.jsonl holds the first `log.completions` responses of every step.  tokens.jsonl holds `log.tokens` of these
with every column that the batch has for tokens, and what the last update saw of them.  Neither changes what is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.method import Method, diff
from unipo.registry import catalogue

Decode = Callable[[list[int]], str]
# Response number in the batch -> column -> one value per token, None where the update computed none.
Watched = dict[int, dict[str, list[Any]]]
# Tokens are written as text, and places on the sampling tape mean nothing afterwards.
_LEFT_OUT = ("tokens", "taped")
# Columns of the update's pass, and those that only the update provided, with the names under which they are kept.
_LIVE = {"logp": "new_logp"} | {
    name: name for name in ("entropy", "divergence", "live_value", "old_logp", "reference_logp", "current_logp")
}


# -- which responses, and what the update saw of them ----------------------------------------------
def chosen_rows(batch: Batch, completions: int, tokens: int) -> list[int]:
    """Numbers of the responses that are recorded token by token: of those written down, the best and the worst.

    Ordered by reward, they are taken from both ends in turn; without rewards, the first ones.
    """
    rows = list(range(min(completions, batch.layout.n_sequences)))
    if batch.has("reward"):
        reward = batch.reward[: len(rows)].tolist()
        down = sorted(rows, key=lambda i: (-reward[i] if math.isfinite(reward[i]) else math.inf, i))
        rows = [down[k // 2] if k % 2 == 0 else down[-1 - k // 2] for k in range(len(down))]
    return sorted(rows[:tokens])


def marked(batch: Batch, rows: Sequence[int]) -> Batch:
    """The batch with a sequence column `recorded`: the response's own number where it is recorded, else -1."""
    if not rows:
        return batch
    number = torch.full((batch.layout.n_sequences,), -1, dtype=torch.int64, device=batch.tokens.device)
    number[list(rows)] = torch.tensor(list(rows), device=number.device)
    return batch.with_columns("sequence", recorded=number)


def watch(live: Batch, wanted: Tensor, clipped: Tensor | None, into: Watched) -> None:
    """Keep the live columns of the recorded responses in this piece; a later pass replaces an earlier one."""
    if not live.has("recorded"):
        return
    layout = live.layout
    for i in (live.recorded >= 0).nonzero().flatten().tolist():
        span = slice(int(layout.seq_starts[i]), int(layout.seq_starts[i] + layout.seq_lengths[i]))
        known = wanted[span].tolist()
        columns = {ours: getattr(live, name)[span] for name, ours in _LIVE.items() if live.has(name)}
        if clipped is not None:
            columns["clipped"] = clipped[span]
        into[int(live.recorded[i])] = {
            name: [x if k else None for x, k in zip(column.detach().tolist(), known, strict=True)]
            for name, column in columns.items()
        }


# -- the records -----------------------------------------------------------------------------------
def completion_records(batch: Batch, most: int, decode: Decode) -> list[dict[str, Any]]:
    """The first responses of a batch as plain records: prompt, text, token ids, reward, mean advantage."""
    layout = batch.layout
    records = []
    for i in range(min(most, layout.n_sequences)):
        start, stop = int(layout.seq_starts[i]), int(layout.seq_starts[i] + layout.seq_lengths[i])
        prompt = int(layout.seq_prompt[i])
        context = int(layout.context_starts[prompt])
        record: dict[str, Any] = {
            "prompt_id": int(batch.prompt_id[prompt]),
            "prompt": decode(batch.context[context : context + int(layout.context_lengths[prompt])].tolist()),
            "text": batch.text[i],
            "answer": batch.answer[prompt],
            "tokens": batch.tokens[start:stop].tolist(),
        }
        for name in ("reward", "score", "truncated", "demonstration"):
            if batch.has(name):
                record[name] = getattr(batch, name)[i].item()
        if batch.has("reward_parts") and batch.reward_parts[i]:
            record["reward_parts"] = batch.reward_parts[i]
        if batch.has("advantage"):
            counted = batch.advantage[start:stop][batch.mask[start:stop]]
            record["advantage"] = short(float(counted.mean())) if len(counted) else 0.0
        records.append(record)
    return records


def token_records(batch: Batch, rows: Sequence[int], watched: Watched, decode: Decode) -> list[dict[str, Any]]:
    """These responses token by token: `pieces` (their texts, which joined are the response) and `columns`.

    A column is a list with one number per token (bools as 0 and 1, None for what is unknown or not finite), or the
    number itself where it is the same for all.
    """
    layout = batch.layout
    records = []
    for i in rows:
        span = slice(int(layout.seq_starts[i]), int(layout.seq_starts[i] + layout.seq_lengths[i]))
        columns: dict[str, list[Any]] = {
            name: value[span].tolist()
            for name, value in batch.columns.items()
            if batch.levels[name] == "token"
            and isinstance(value, Tensor)
            and value.dim() == 1
            and name not in _LEFT_OUT
        }
        if batch.has("sequence_advantage") and float(batch.sequence_advantage[i]) != 0:
            whole = float(batch.sequence_advantage[i])
            columns["credit_weight"] = [x / whole for x in columns["advantage"]]
        columns = watched.get(i, {}) | columns  # the batch knows its columns for every token
        records.append(
            {
                "row": i,
                "pieces": pieces(batch.tokens[span].tolist(), decode),
                "columns": {name: _compact(column) for name, column in columns.items()},
            }
        )
    return records


def method_record(method: Method) -> dict[str, Any]:
    """What was run: formula, paper, and what changed from the parent, as the code said it on that day."""
    known = catalogue()
    parent = known.get(method.parent or "")
    named = known.get(method.name)
    return {
        "name": method.name,
        "summary": method.summary,
        "paper": method.paper.title,
        "url": f"https://arxiv.org/abs/{method.paper.arxiv}" if method.paper.arxiv else "",
        "formula": method.explain().splitlines(),
        "parent": None if parent is None else parent.name,
        "diff": [] if parent is None else _changes(parent, method),
        "own_settings": [] if named is None else _changes(named, method),
        "notes": list(method.notes),
        "doubts": list(method.doubts),
        "limits": list(method.limits),
    }


def _changes(before: Method, after: Method) -> list[list[str]]:
    return [[c.path, _shown(c.before), _shown(c.after)] for c in diff(before, after)]


def _shown(value: Any) -> str:
    return "none" if value is None or value == () else str(value)


# -- numbers and texts -----------------------------------------------------------------------------
def short(x: float) -> float | None:
    """Four significant digits, as many as a colour or a tooltip shows; None for nan and infinities."""
    return float(f"{x:.4g}") if math.isfinite(x) else None


def _compact(column: Sequence[Any]) -> Any:
    values = [None if x is None else int(x) if isinstance(x, bool | int) else short(x) for x in column]
    return values[0] if len(values) > 1 and values[0] is not None and values.count(values[0]) == len(values) else values


def pieces(ids: Sequence[int], decode: Decode) -> list[str]:
    """The text that each token adds. A character of several tokens stands at its last, and theirs are empty.

    Decoded with the tokens before it, because what a token means depends on them (leading spaces, parts of letters).
    """
    step = _steps(decode)
    out: list[str] = []
    done = begun = 0  # ids[done:begun] are context whose text is out already
    for end in range(1, len(ids) + 1):
        before, after = step(tuple(ids[done:begun])), step(tuple(ids[done:end]))
        if end < len(ids) and (after.endswith("\ufffd") or len(after) < len(before)):
            out.append("")
            continue
        out.append(after[len(before) :])
        done, begun = begun, end
    return out


@lru_cache(maxsize=4)
def _steps(decode: Decode) -> Callable[[tuple[int, ...]], str]:
    """Decoding of short pieces, which come again and again."""
    return lru_cache(maxsize=65536)(lambda ids: decode(list(ids)) if ids else "")
