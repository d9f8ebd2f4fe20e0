"""Chat messages as data brings them: the two common spellings, and conversations written as one text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from unipo.tasks.pictures import MARK
from unipo.tasks.task import Message

_IMAGE_PARTS = ("image", "image_url")
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_TURN = re.compile(r"\n\n(Human|Assistant):")
_TRANSCRIPT_ROLES = {"Human": "user", "Assistant": "assistant"}


class BadRow(Exception):
    """One row cannot be used. reason: a short name to count under; detail: what was seen."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def is_messages(value: Any) -> bool:
    """Whether this is a list of mappings, the shape of a conversation."""
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(m, Mapping) for m in value)


def read_messages(value: Any, where: str) -> tuple[Message, ...]:
    """Normalise a conversation to ({"role", "content"}, ...).

    value: list of {"role", "content"} (any role; other keys, such as tool calls, are kept), or of {"from",
    "value"} with from = human | gpt | system.  Content in parts becomes text, with `<image>` for an image (what it
    shows is read by `part_images`).  Raises BadRow "messages" for anything else, or an empty list.
    """
    if not is_messages(value) or not value:
        raise BadRow("messages", f"{where} must be a non-empty list of messages, got {_show(value)}")
    return tuple(_message(m, f"{where}[{i}]") for i, m in enumerate(value))


def _message(message: Mapping[str, Any], where: str) -> Message:
    if "from" in message and "value" in message:
        speaker = message["from"]
        if speaker not in _SPEAKERS:
            raise BadRow("messages", f"{where}: unknown speaker {speaker!r}; known: {', '.join(_SPEAKERS)}")
        found = {"role": _SPEAKERS[speaker], "content": message["value"]}
    else:
        # Stored tables give every message all columns; the empty ones are absent, not null.
        found = {key: item for key, item in message.items() if item is not None}
        if found.get("tool_calls"):
            found.setdefault("content", "")
        if is_messages(found.get("content")):
            found["content"] = "".join(_part_text(part, where) for part in found["content"])
    if not isinstance(found.get("role"), str) or not isinstance(found.get("content"), str):
        raise BadRow("messages", f'{where} must have text under "role" and "content", got {_show(message)}')
    return found


def _part_text(part: Mapping[str, Any], where: str) -> str:
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if part.get("type") in _IMAGE_PARTS:
        return MARK
    raise BadRow("messages", f"{where}: a part of the content must be text or an image, got {_show(part)}")


def part_images(value: Any) -> tuple[Any, ...]:
    """What the image parts of a conversation show, in order; None for a part that only marks a place."""
    if not is_messages(value):
        return ()
    parts = [p for m in value if is_messages(m.get("content")) for p in m["content"] if p.get("type") in _IMAGE_PARTS]
    return tuple(_shown(p) for p in parts)


def _shown(part: Mapping[str, Any]) -> Any:
    found = next((part[name] for name in ("image", "path", "url", "image_url") if part.get(name) is not None), None)
    return found.get("url", found) if isinstance(found, Mapping) else found


def is_transcript(value: Any) -> TypeGuard[str]:
    """Whether this text is a whole conversation in the form of the HH data: "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    return isinstance(value, str) and value.lstrip("\n").startswith("Human:") and "\n\nAssistant:" in value


def read_transcript(text: str, where: str) -> tuple[Message, ...]:
    """Cut "\\n\\nHuman: a\\n\\nAssistant: b" into messages; white space around each turn is dropped.

    Source: Bai et al. 2022 (arXiv 2204.05862), data of anthropics/hh-rlhf.
    Unsure: a turn that itself contains the line "\\n\\nHuman:" cannot be told from a new turn, and is cut there.
    """
    pieces = _TURN.split("\n\n" + text.lstrip("\n"))
    if pieces[0].strip():
        raise BadRow("transcript", f"{where} must begin with 'Human:', it begins {text[:40]!r}")
    roles, turns = pieces[1::2], pieces[2::2]
    return tuple({"role": _TRANSCRIPT_ROLES[r], "content": t.strip()} for r, t in zip(roles, turns, strict=True))


def split_last(messages: tuple[Message, ...], where: str) -> tuple[tuple[Message, ...], str]:
    """(the messages before, the text of the last), where the last must be the assistant's and plain text."""
    if not messages or messages[-1]["role"] != "assistant":
        last = messages[-1]["role"] if messages else "nothing"
        raise BadRow("no final assistant turn", f"{where} must end with an assistant message, it ends with {last}")
    if messages[-1].get("tool_calls"):
        raise BadRow("tool call", f"{where} ends with a tool call, which is no response text")
    return messages[:-1], str(messages[-1]["content"])


def _show(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:80]}{'...' if len(text) > 80 else ''}"
