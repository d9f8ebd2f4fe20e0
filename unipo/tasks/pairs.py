"""Preferences: two whole conversations, a prompt with two responses, or a ranked list."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from unipo.tasks.messages import BadRow, is_messages, is_transcript, read_messages, read_transcript, split_last
from unipo.tasks.task import Message, Response

Prompt = str | tuple[Message, ...]


def read_pair(prompt: Prompt | None, chosen: Any, rejected: Any) -> tuple[Prompt, tuple[Response, Response]]:
    """(prompt, (preferred response with preference 1, other response with 0)).

    prompt given: chosen and rejected are responses (text, or a list of one assistant message), or whole
    conversations (lists of messages) that begin with that prompt.
    prompt None: both are whole conversations, as messages or as "\\n\\nHuman: ...\\n\\nAssistant: ..."
    transcripts (Bai et al. 2022, arXiv 2204.05862); everything before the last assistant turn is the prompt.
    Raises BadRow: "prompts differ", "identical responses", "empty response", "no final assistant turn",
    "no prompt", or a side of the wrong type.
    """
    first, preferred = _side(prompt, chosen, "chosen")
    second, other = _side(prompt, rejected, "rejected")
    if first != second:
        raise BadRow("prompts differ", "chosen and rejected answer different prompts")
    if not preferred.strip() or not other.strip():
        raise BadRow("empty response", f"the {'rejected' if preferred.strip() else 'chosen'} response is empty")
    if preferred == other:
        raise BadRow("identical responses", f"chosen and rejected are the same: {preferred[:60]!r}")
    return first, (Response(preferred, 1.0), Response(other, 0.0))


def _side(prompt: Prompt | None, value: Any, where: str) -> tuple[Prompt, str]:
    if isinstance(value, str):
        if prompt is not None:
            return prompt, value
        if not is_transcript(value):
            raise BadRow(
                "no prompt",
                f"{where} is neither messages nor a transcript ('\\n\\nHuman: ...'), so it holds no prompt: "
                "pass --data.fields.prompt NAME",
            )
        return _conversation(read_transcript(value, where), where)
    if not is_messages(value):
        raise BadRow("response type", f"{where} must be text or messages, it is {type(value).__name__}")
    messages = read_messages(value, where)
    if prompt is None:
        return _conversation(messages, where)
    before, response = split_last(messages, where)
    if before and not _same(prompt, before):
        raise BadRow("prompts differ", f"{where} is a conversation that does not begin with the prompt field")
    # The conversation is the fuller form of a prompt: it may open with a system message.
    return (before or prompt), response


def _conversation(messages: tuple[Message, ...], where: str) -> tuple[Prompt, str]:
    before, response = split_last(messages, where)
    if not before:
        raise BadRow("no prompt", f"{where} is an assistant turn with nothing before it")
    return before, response


def _same(prompt: Prompt, before: tuple[Message, ...]) -> bool:
    """Whether a prompt field says the same as the opening of a conversation (a system message apart)."""
    if isinstance(prompt, str):
        spoken = [m for m in before if m["role"] != "system"]
        return len(spoken) == 1 and spoken[0] == {"role": "user", "content": prompt}
    return list(prompt) == list(before)


def read_ranked(responses: Any, weights: Any, ranked: bool) -> tuple[Response, ...]:
    """Responses of one prompt in the data's order, with preference = score, or (worst rank - rank).

    responses: two or more texts.  weights: one finite number each; ranked: 1 is best, as in a table of places.
    Raises BadRow: lengths that differ, fewer than two, no two weights that differ, a text twice.
    """
    if not _is_list(responses) or not all(isinstance(r, str) for r in responses):
        raise BadRow("response type", f"responses must be a list of texts, it is {type(responses).__name__}")
    name = "ranks" if ranked else "scores"
    if not _is_list(weights) or not all(_is_number(w) for w in weights):
        raise BadRow(f"{name} type", f"{name} must be a list of finite numbers, got {str(weights)[:60]}")
    if len(weights) != len(responses) or len(responses) < 2:
        raise BadRow("list length", f"{len(responses)} responses with {len(weights)} {name}; two or more are needed")
    if len(set(weights)) == 1:
        raise BadRow("no preference", f"all {name} are equal to {weights[0]}")
    if not all(r.strip() for r in responses):
        raise BadRow("empty response", f"response {[bool(r.strip()) for r in responses].index(False) + 1} is empty")
    if len(set(responses)) != len(responses):
        raise BadRow("identical responses", "the same response stands twice in the list")
    worst = max(weights)
    preferences = [float(worst - w) for w in weights] if ranked else [float(w) for w in weights]
    return tuple(Response(text, value) for text, value in zip(responses, preferences, strict=True))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
