"""Rows of data as examples: what their fields hold, read and checked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any, Literal, get_args

from unipo.errors import ConfigError, DataError
from unipo.tasks.fields import CANDIDATES, Fields, Kind, resolve_fields
from unipo.tasks.messages import (
    BadRow,
    is_messages,
    is_transcript,
    part_images,
    read_messages,
    read_transcript,
    split_last,
)
from unipo.tasks.pairs import read_pair, read_ranked
from unipo.tasks.task import Example, Message, Response

OnBadRow = Literal["stop", "skip"]
KINDS = get_args(Kind)


@dataclass(frozen=True)
class Examples:
    """What was read. fields: every name as resolved.  events: skipped rows counted by reason.
    description: one line that says which field was taken for what."""

    examples: tuple[Example, ...]
    fields: Fields
    events: Mapping[str, int] = field(default_factory=dict)
    description: str = ""


def to_examples(
    rows: Sequence[Mapping[str, Any]],
    fields: Fields | None = None,
    kind: Kind = "auto",
    source: str = "data",
    on_bad_row: OnBadRow = "stop",
    first_id: int = 0,
) -> Examples:
    """Turn rows into examples; `Example.id` is first_id plus the row's 0-based place, skipped rows included.

    kind: what each row must have. "answer": a prompt and a ground truth.  "demonstration": a prompt and a
        response.  "preference": a pair or ranked list.  "prompt": a prompt.  "auto": a prompt and whatever
        else is found.
    on_bad_row: "stop" raises DataError at the first row that cannot be used; "skip" leaves it out and counts
        it in `events`.
    Raises DataError: a role that is missing or ambiguous (with the row's fields and the option to pass), a
        bad row, or no row left.  Rows are numbered from 1 in messages.
    """
    if kind not in KINDS or on_bad_row not in ("stop", "skip"):
        raise ConfigError(
            f"kind must be one of {', '.join(KINDS)} and on_bad_row stop or skip; got {kind}, {on_bad_row}"
        )
    if not rows:
        raise DataError(f"{source} has no rows")
    resolved = resolve_fields(rows, fields or Fields(), kind, source)
    examples: list[Example] = []
    events: Counter[str] = Counter()
    for number, row in enumerate(rows, start=1):
        try:
            examples.append(_example(row, resolved, kind, first_id + number - 1, Path(source).parent))
        except BadRow as bad:
            if on_bad_row == "stop":
                raise DataError(f"{source}, row {number}: {bad} (--data.bad-rows skip leaves such rows out)") from bad
            events[bad.reason] += 1
    if not examples:
        raise DataError(f"{source}: none of the {len(rows)} rows can be used: {dict(events)}")
    return Examples(tuple(examples), resolved, dict(events), _describe(resolved, len(examples), events))


def _describe(fields: Fields, count: int, events: Mapping[str, int]) -> str:
    roles = [f"{role} from {getattr(fields, role)!r}" for role in CANDIDATES if getattr(fields, role)]
    if fields.template is not None:
        roles.insert(0, "prompt from the template")
    if fields.answer and fields.answer_after:
        roles.append(f"answer is the part after {fields.answer_after!r}")
    skipped = "".join(f"; skipped {n}: {reason}" for reason, n in sorted(events.items()))
    return f"{count} examples: {', '.join(roles)}{skipped}"


def _example(row: Mapping[str, Any], fields: Fields, kind: Kind, place: int, folder: Path) -> Example:
    prompt, responses = _prompt(row, fields)
    wants = kind in ("auto", "demonstration")
    if fields.response and responses:
        raise BadRow("two responses", f"the prompt ends with an assistant message and {fields.response!r} is one too")
    if fields.response:
        responses = (Response(_text(row, fields.response)),)
    elif not wants:
        responses = ()
    if fields.chosen:
        if responses:
            raise BadRow("two responses", "the prompt ends with an assistant message, but a preference is given too")
        prompt, responses = read_pair(prompt, row.get(fields.chosen), row.get(fields.rejected or ""))
    elif fields.responses:
        ranked = bool(fields.ranks)
        weights = row.get((fields.ranks if ranked else fields.scores) or "")
        responses = read_ranked(row.get(fields.responses), weights, ranked)
    if kind == "demonstration" and not responses:
        raise BadRow(
            "no response", "no response: pass --data.fields.response NAME, or messages that end with the assistant"
        )
    if prompt is None:
        raise BadRow("no prompt", "no prompt")
    answer = _answer(row, fields, required=kind == "answer")
    images = _images(row, fields, folder)
    # Pixels are no business of a reward; the names of files may be.
    kept = {k: v for k, v in row.items() if k != fields.images or isinstance(v, str) or _all_text(v)}
    return Example(_with_system(prompt, fields.system), answer, responses, kept, place, images)


def _prompt(row: Mapping[str, Any], fields: Fields) -> tuple[str | tuple[Message, ...] | None, tuple[Response, ...]]:
    """(the prompt, the demonstration that ended it); (None, ()) where it is inside a preference."""
    if fields.template is not None:
        try:
            return Formatter().vformat(fields.template, (), _Printable(row)), ()
        except (ValueError, AttributeError, TypeError) as error:
            raise BadRow("template field", f"the template cannot be filled: {error}") from error
    name = fields.prompt or fields.messages
    if not name:
        return None, ()
    value = row.get(name)
    if isinstance(value, str) and fields.prompt:
        if not value.strip():
            raise BadRow("empty prompt", f"the prompt in {name!r} is empty")
        return value, ()
    if fields.prompt and not is_messages(value):
        raise BadRow("prompt type", f"the prompt in {name!r} must be text or messages, it is {_kind_of(value)}")
    messages = read_transcript(value, name) if is_transcript(value) else read_messages(value, name)
    if messages[-1]["role"] != "assistant":
        return messages, ()
    before, last = split_last(messages, name)
    if not before:
        raise BadRow("no prompt", f"{name!r} holds an assistant message and nothing before it")
    return before, (Response(last),)


def _images(row: Mapping[str, Any], fields: Fields, folder: Path) -> tuple[Any, ...]:
    """The images of a row's field, or of its prompt's parts; paths are made whole and must exist."""
    inside = part_images(row.get(fields.prompt or fields.messages or ""))
    value = row.get(fields.images) if fields.images else None
    beside = () if value is None else tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if beside and any(x is not None for x in inside):
        raise BadRow("two places for images", f"images stand in {fields.images!r} and in the prompt: keep one")
    images = beside or inside
    if any(x is None for x in images):
        raise BadRow(
            "no image", "the prompt has a place for an image, and no image is given: pass --data.fields.images NAME"
        )
    return tuple(_found(x, folder) for x in images)


def _found(image: Any, folder: Path) -> Any:
    if not isinstance(image, (str, Path)):
        return image
    path = folder / image
    if not path.is_file():
        raise BadRow("image file", f"there is no image file {str(path)!r}")
    return str(path)


def _all_text(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(x, str) for x in value)


class _Printable(dict[str, Any]):
    """Row values for a template: text and numbers only, because the repr of a list is nobody's prompt."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)

    def __getitem__(self, name: str) -> Any:
        value = self.get(name)
        if value is None or isinstance(value, (list, dict, tuple)):
            raise BadRow("template field", f"the template needs text in {name!r}, it is {_kind_of(value)}")
        return value


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(
            "response type", f"the response in {name!r} must be text that is not empty, it is {_kind_of(value)}"
        )
    return value


def _answer(row: Mapping[str, Any], fields: Fields, required: bool) -> str | None:
    if not fields.answer:
        return None
    text = answer_text(row.get(fields.answer), fields.answer)
    if text is not None and fields.answer_after:
        if fields.answer_after not in text:
            raise BadRow(
                "no answer mark",
                f"the answer in {fields.answer!r} has no {fields.answer_after!r}: {text[:60]!r} "
                "(--data.fields.answer-after '' takes answers whole)",
            )
        text = text.rpartition(fields.answer_after)[2].strip()
    if required and (text is None or not text.strip()):
        raise BadRow("no answer", f"the answer in {fields.answer!r} is missing or empty")
    return text


def answer_text(value: Any, name: str) -> str | None:
    """An answer as text: 42 -> "42", 0.5 -> "0.5", True -> "True"; None stays None.

    Raises BadRow "answer type" for lists, mappings, NaN and infinities.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    raise BadRow("answer type", f"the answer in {name!r} must be text or a number, it is {_kind_of(value)}")


def _with_system(prompt: str | tuple[Message, ...], system: str | None) -> str | tuple[Message, ...]:
    if system is None:
        return prompt
    opening: Message = {"role": "system", "content": system}
    if isinstance(prompt, str):
        return (opening, {"role": "user", "content": prompt})
    if prompt and prompt[0]["role"] == "system":
        raise BadRow("two system messages", "the prompt has a system message already, and fields.system gives another")
    return (opening, *prompt)


def _kind_of(value: Any) -> str:
    return f"{type(value).__name__} {repr(value)[:60]}" if value is not None else "missing"
