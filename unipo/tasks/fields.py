"""Which field of a data row is the prompt, the answer, the demonstration, the preferred response.

Names are given, or found among the common ones; two candidates for one role are an error that names the
option to pass, never a choice made in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Any, Literal

from unipo.errors import ConfigError, DataError

Kind = Literal["auto", "prompt", "answer", "demonstration", "preference"]
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
            f"{source}, row 1: {' and '.join(hits)} could each be the {role}: pass --data.fields.{role} NAME "
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
            f"{source}, row 1: {' and '.join(hits)} could each be the prompt: pass --data.fields.prompt NAME "
            f"(or --data.fields.messages NAME, or --data.fields.template TEXT); {_has(present)}"
        )
    return {"prompt": "", "messages": "", **{role: name for name, role in hits.items()}}


def _check_kind(found: Mapping[str, str], fields: Fields, kind: Kind, source: str, present: Sequence[str]) -> None:
    def missing(role: str, what: str) -> DataError:
        looked = ", ".join((*CANDIDATES[role], *(CANDIDATES["messages"] if role == "prompt" else ())))
        return DataError(
            f"{source}, row 1: {what}, and no field named {looked} holds one: pass --data.fields.{role} NAME; {_has(present)}"
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
