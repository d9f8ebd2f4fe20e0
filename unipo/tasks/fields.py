"""Which field of a data row is the prompt, the answer, the demonstration, the preferred response.

Names are given, or found among the common ones; two candidates for one role are an error that names the
option to pass, never a choice made in silence.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from unipo.errors import ConfigError, DataError
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

Kind = Literal["auto", "prompt", "answer", "demonstration", "preference"]
OnBadRow = Literal["stop", "skip"]
KINDS = ("auto", "prompt", "answer", "demonstration", "preference")
ANSWER_MARK = "####"
_MARK_ROWS = 100

CANDIDATES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "problem", "query", "instruction", "input"),
    "messages": ("messages", "conversations"),
    "answer": ("answer", "solution", "target", "label", "ground_truth", "final_answer"),
    "response": ("response", "completion", "output", "demonstration"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "responses": ("responses",),
    "scores": ("scores",),
    "ranks": ("ranks",),
    "images": ("images", "image"),
}

# The roles each kind of data has a use for beside the prompt; others are not looked for, so that they cannot
# be ambiguous.
_ROLES: dict[str, tuple[str, ...]] = {
    "auto": ("answer", "response", "chosen", "rejected", "responses", "scores", "ranks", "images"),
    "prompt": ("images",),
    "answer": ("answer", "images"),
    "demonstration": ("response", "images"),
    "preference": ("chosen", "rejected", "responses", "scores", "ranks", "images"),
}


@dataclass(frozen=True)
class Fields:
    """Names of the fields of a row by their role; None: look for a common name, "": there is none.

    prompt: text, or a list of messages.  messages: a conversation (messages, or one text "\\n\\nHuman: ...");
    a last assistant message in it is the demonstration.  answer: ground truth (text, number or bool).  response: a demonstration.  chosen,
    rejected: a preference.  responses with scores (higher is better) or ranks (1 is best): a ranked list.
    images: one image or a list of them, each a path (from the data file's folder) or an image of `datasets`; they
    stand where the prompt says <image>, or before it.
    template: the prompt written from several fields, such as "Question: {question}\\nAnswer:".
    system: a system message put before every prompt, which becomes messages if it is text.
    answer_after: the answer is what follows the last such mark ("####" in GSM8K; the full text stays in
    `Example.row`).  None: "####" if each of the first 100 answers has it; "": never.
    """

    prompt: str | None = None
    messages: str | None = None
    answer: str | None = None
    response: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    responses: str | None = None
    scores: str | None = None
    ranks: str | None = None
    images: str | None = None
    template: str | None = None
    system: str | None = None
    answer_after: str | None = None


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


# -- names ---------------------------------------------------------------------------------------
def resolve_fields(rows: Sequence[Mapping[str, Any]], fields: Fields, kind: Kind, source: str) -> Fields:
    """Fill in every name, "" for a role that is absent; DataError where two names fit one role or none fits."""
    present = _present(rows)
    others = [role for role in CANDIDATES if role not in ("prompt", "messages")]
    found = {role: _find(role, getattr(fields, role), present, kind, source) for role in others}
    found |= _find_prompt(fields, present, source)
    _check_kind(found, fields, kind, source, present)
    if fields.template is not None:
        _check_template(fields.template, present, source)
    mark = fields.answer_after
    if mark is None:
        mark = ANSWER_MARK if found["answer"] and _all_marked(rows, found["answer"]) else ""
    return replace(fields, answer_after=mark, **found)


def _present(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names that hold something in some row; merged tables have whole columns of nulls."""
    names: dict[str, None] = {}
    for row in rows:
        names.update({str(name): None for name, value in row.items() if value is not None})
    return list(names)


def _find(role: str, given: str | None, present: Sequence[str], kind: Kind, source: str) -> str:
    if given == "":
        return ""
    if given is not None:
        if given not in present:
            raise DataError(f"{source}, row 1: no field {given!r} for the {role}; {_has(present)}")
        return given
    hits = [name for name in CANDIDATES[role] if name in present] if role in _ROLES[kind] else []
    if len(hits) > 1:
        raise DataError(
            f"{source}, row 1: {' and '.join(hits)} could each be the {role}: pass --fields.{role} NAME "
            f"(or an empty name for none); {_has(present)}"
        )
    return hits[0] if hits else ""


def _find_prompt(fields: Fields, present: Sequence[str], source: str) -> dict[str, str]:
    """Exactly one of template, prompt and messages gives the prompt; none only for whole conversations in pairs."""
    given = [f"fields.{role}" for role in ("template", "prompt", "messages") if getattr(fields, role)]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} each give the prompt: keep one of them")
    if fields.template is not None:
        return {"prompt": "", "messages": ""}
    hits = {}
    for role in ("prompt", "messages"):
        name = getattr(fields, role)
        if name and name not in present:
            raise DataError(f"{source}, row 1: no field {name!r} for the {role}; {_has(present)}")
        names = CANDIDATES[role] if name is None and not given else (name,)
        hits.update({n: role for n in names if n in present})
    if len(hits) > 1:
        raise DataError(
            f"{source}, row 1: {' and '.join(hits)} could each be the prompt: pass --fields.prompt NAME "
            f"(or --fields.messages NAME, or --fields.template TEXT); {_has(present)}"
        )
    return {"prompt": "", "messages": "", **{role: name for name, role in hits.items()}}


def _check_kind(found: Mapping[str, str], fields: Fields, kind: Kind, source: str, present: Sequence[str]) -> None:
    def missing(role: str, what: str) -> DataError:
        looked = ", ".join((*CANDIDATES[role], *(CANDIDATES["messages"] if role == "prompt" else ())))
        return DataError(
            f"{source}, row 1: {what}, and no field named {looked} holds one: pass --fields.{role} NAME; {_has(present)}"
        )

    no_prompt = not (found["prompt"] or found["messages"] or fields.template)
    if no_prompt and not found["chosen"]:
        raise missing("prompt", "every row needs a prompt")
    if bool(found["chosen"]) != bool(found["rejected"]):
        raise missing("rejected" if found["chosen"] else "chosen", "a preference has two sides")
    if found["responses"] and bool(found["scores"]) == bool(found["ranks"]):
        raise missing("scores", "a list of responses needs either scores or ranks")
    if found["responses"] and found["chosen"]:
        raise DataError(f"{source}, row 1: both a pair and a list of responses; switch one off with an empty name")
    if kind == "answer" and not found["answer"]:
        raise missing("answer", "every row needs an answer")
    if kind == "preference" and not (found["chosen"] or found["responses"]):
        raise missing("chosen", "every row needs a preference")


def _check_template(template: str, present: Sequence[str], source: str) -> None:
    try:
        names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(f"template {template!r}: {error}; write {{{{ and }}}} for braces") from error
    if not names:
        raise ConfigError(f"template {template!r} names no field; {_has(present)}")
    for name in names:
        if name not in present:
            raise DataError(f"{source}, row 1: template names the field {name!r}; {_has(present)}")


def _all_marked(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    first = [row.get(name) for row in rows[:_MARK_ROWS]]
    return all(isinstance(value, str) and ANSWER_MARK in value for value in first)


def _has(present: Sequence[str]) -> str:
    return f"the rows have the fields {', '.join(present) or '(none)'}"


def _describe(fields: Fields, count: int, events: Mapping[str, int]) -> str:
    roles = [f"{role} from {getattr(fields, role)!r}" for role in CANDIDATES if getattr(fields, role)]
    if fields.template is not None:
        roles.insert(0, "prompt from the template")
    if fields.answer and fields.answer_after:
        roles.append(f"answer is the part after {fields.answer_after!r}")
    skipped = "".join(f"; skipped {n}: {reason}" for reason, n in sorted(events.items()))
    return f"{count} examples: {', '.join(roles)}{skipped}"


# -- one row -------------------------------------------------------------------------------------
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
        raise BadRow("no response", "no response: pass --fields.response NAME, or messages that end with the assistant")
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
            "no image", "the prompt has a place for an image, and no image is given: pass --fields.images NAME"
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
                "(--fields.answer_after '' takes answers whole)",
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
