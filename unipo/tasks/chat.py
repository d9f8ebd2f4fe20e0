"""Prompts and offline responses as token ids: the only place where text becomes tokens.

The prompt is rendered once and its ids are kept; a response from data is what the same template adds to them.
Nothing is truncated: a prompt that is too long is an error or a counted skip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from unipo.errors import ConfigError, DataError
from unipo.tasks.pictures import MARK, encode_text, marked, open_picture, render, without_marks
from unipo.tasks.task import Example, Message

Chat = Literal["auto", "always", "never"]
Prompt = str | Sequence[Message]


class PromptTooLong(DataError):
    """A prompt with more tokens than there is room for."""


def uses_template(tokenizer: Any, prompt: Prompt, chat: Chat = "auto") -> bool:
    """Whether this prompt goes through the tokenizer's chat template.

    "auto": messages do, and text does (as one user message) if the tokenizer has a template.  "always": both
    do.  "never": text is encoded as it is.  Raises ConfigError where a template is needed and there is none,
    and for messages under "never".
    """
    if chat not in ("auto", "always", "never"):
        raise ConfigError(f"chat must be auto, always or never, got {chat!r}")
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if chat == "never":
        if not isinstance(prompt, str):
            raise ConfigError("chat='never' needs prompts of plain text, but this one is a list of messages")
        return False
    if not has_template and (chat == "always" or not isinstance(prompt, str)):
        what = "chat='always'" if chat == "always" else "a prompt of messages"
        raise ConfigError(
            f"{what} needs a chat template, and this tokenizer has none: use text prompts and chat='auto'"
        )
    return has_template


def encode_prompt(
    tokenizer: Any,
    prompt: Example | Prompt,
    chat: Chat = "auto",
    max_tokens: int | None = None,
    processor: Any = None,
) -> list[int]:
    """Token ids of a prompt, ready to be continued.

    Through the chat template (see `uses_template`): rendered with its generation prompt and encoded without
    further special tokens, since the template writes its own, so BOS is never doubled.  As plain text: with
    the tokenizer's opening special tokens (BOS) unless the text begins with them, and never with EOS.
    processor: of an image-and-text model, for an example with images.
    Raises DataError: an empty prompt or one without tokens, a message the template refuses, an assistant message at the end, a control
    token inside a message; PromptTooLong: more than max_tokens.
    """
    said = prompt.prompt if isinstance(prompt, Example) else prompt
    images = prompt.images if isinstance(prompt, Example) else ()
    if len(said) == 0:
        raise DataError("the prompt is empty, so there is nothing to continue")
    if images:
        said = marked(said, len(images))
    if uses_template(_template_owner(tokenizer, processor, images), said, chat):
        messages = as_messages(said)
        if messages[-1].get("role") == "assistant":
            raise DataError("a prompt must not end with an assistant message: it is what the model is to write")
        _refuse_control(control_tokens(tokenizer), [without_marks(m) for m in messages] if images else messages)
        if images:
            ids = encode_text(_seeing(processor), render(processor, messages, True), [open_picture(x) for x in images])
        else:
            ids = _encode(tokenizer, _render(tokenizer, messages, generation=True))
    elif images:
        text = str(said).replace(MARK, str(_seeing(processor).image_token))
        ids = encode_text(processor, text, [open_picture(x) for x in images])
    else:
        ids = _encode_plain(tokenizer, str(said))
    if not ids:
        raise DataError(f"the prompt {_show(said)} has no tokens, so there is nothing to continue")
    if max_tokens is not None and len(ids) > max_tokens:
        raise PromptTooLong(
            f"the prompt {_show(said)} has {len(ids)} tokens, {max_tokens} fit: raise --data.max-prompt, or leave such "
            "prompts out with --data.long-prompts skip"
        )
    return ids


@dataclass(frozen=True)
class EncodedPrompts:
    """examples and ids, in step; events: how many prompts were skipped as "prompt too long"."""

    examples: tuple[Example, ...]
    ids: tuple[list[int], ...]
    events: Mapping[str, int] = field(default_factory=dict)


def encode_prompts(
    tokenizer: Any,
    examples: Sequence[Example],
    chat: Chat = "auto",
    max_tokens: int | None = None,
    on_too_long: Literal["stop", "skip"] = "stop",
    processor: Any = None,
) -> EncodedPrompts:
    """Encode every prompt. on_too_long: "stop" raises PromptTooLong naming the example, "skip" leaves it out and
    counts it. Raises DataError also where no prompt is left."""
    if on_too_long not in ("stop", "skip"):
        raise ConfigError(f"on_too_long must be stop or skip, got {on_too_long!r}")
    kept: list[tuple[Example, list[int]]] = []
    events: Counter[str] = Counter()
    for example in examples:
        try:
            kept.append((example, encode_prompt(tokenizer, example, chat, max_tokens, processor)))
        except PromptTooLong as error:
            if on_too_long == "stop":
                raise PromptTooLong(f"example {example.id}: {error}") from error
            events["prompt too long"] += 1
        except DataError as error:
            raise DataError(f"example {example.id}: {error}") from error
    if examples and not kept:
        raise DataError(f"all {len(examples)} prompts have more than {max_tokens} tokens")
    return EncodedPrompts(tuple(e for e, _ in kept), tuple(ids for _, ids in kept), dict(events))


def encode_response(
    tokenizer: Any,
    text: str,
    prompt: Example | Prompt,
    prompt_ids: Sequence[int],
    chat: Chat = "auto",
    processor: Any = None,
) -> list[int]:
    """Token ids of a response that came with the data, up to and including the token that ends the turn.

    Through the chat template: prompt_ids + response = the rendered conversation, without the white space that
    some templates put after the end of a turn, which the policy never writes; EOS is added only where the
    template ends a turn with no special token.  As plain text: the text encoded by itself, then EOS; text and
    prompt are not encoded together, because the policy continues the prompt's own tokens.
    prompt_ids: from `encode_prompt` with the same prompt and `chat`.
    Raises DataError: the template does not continue the prompt's ids, the text holds a control token, or the
    tokenizer has no EOS where one is needed.
    """
    said = prompt.prompt if isinstance(prompt, Example) else prompt
    images = prompt.images if isinstance(prompt, Example) else ()
    said = marked(said, len(images)) if images else said
    start = list(prompt_ids)
    messages: list[Message] = [*as_messages(said), {"role": "assistant", "content": text}]
    control = control_tokens(tokenizer)
    if not uses_template(_template_owner(tokenizer, processor, images), said, chat):
        _refuse_control(control, messages[-1:])
        return [*_encode(tokenizer, text), _eos(tokenizer)]
    _refuse_control(control, [without_marks(m) for m in messages[:-1]] + messages[-1:] if images else messages)
    if images:
        opening, full = render(_seeing(processor), messages[:-1], True), render(processor, messages, False)
    else:
        opening = _render(tokenizer, messages[:-1], generation=True)
        full = _render(tokenizer, messages, generation=False)
    if not full.startswith(opening):
        raise DataError(
            "the chat template does not continue its own prompt: with the generation prompt it ends in "
            f"{opening[-60:]!r}, which the whole conversation {full[-60 - len(text) :]!r} does not contain"
        )
    trimmed = full.rstrip()
    ended = any(trimmed.endswith(token) for token in control) and len(trimmed) > len(opening)
    rendered = trimmed if ended else full
    shown = [open_picture(x) for x in images]
    ids = encode_text(processor, rendered, shown) if images else _encode(tokenizer, rendered)
    if ids[: len(start)] != start:
        place = next((i for i, (a, b) in enumerate(zip(ids, start, strict=False)) if a != b), min(len(ids), len(start)))
        raise DataError(
            f"the rendered conversation does not begin with the prompt's tokens (they part at token {place} of "
            f"{len(start)}): the tokenizer merges across the start of the response, or prompt_ids are of another prompt"
        )
    return ids[len(start) :] if ended else [*ids[len(start) :], _eos(tokenizer)]


def _template_owner(tokenizer: Any, processor: Any, images: Sequence[Any]) -> Any:
    """Where the chat template for a prompt is: image-and-text models may have one beside the tokenizer's."""
    return processor if images and getattr(processor, "chat_template", None) else tokenizer


def _seeing(processor: Any) -> Any:
    if processor is None:
        raise DataError("the prompt has images, and this model reads text only: give a model with a vision tower")
    return processor


def as_messages(prompt: Prompt) -> list[Message]:
    """A prompt as messages: text becomes one user message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _render(tokenizer: Any, messages: Sequence[Message], generation: bool) -> str:
    plain = [dict(m) for m in messages]
    try:
        return str(tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=generation))
    except Exception as error:  # a template is a program of the tokenizer's author and may raise anything
        raise DataError(f"the chat template refuses {_show(messages)}: {error}") from error


def _refuse_control(control: set[str], messages: Sequence[Message]) -> None:
    """A control token written in data would end or open a turn where the data means its characters."""
    for message in messages:
        text = str(message.get("content", ""))
        for token in control:
            if token in text:
                raise DataError(
                    f"the {message.get('role')} text {_show(text)} contains the control token {token!r}: "
                    "take such rows out"
                )


def control_tokens(tokenizer: Any) -> set[str]:
    """Texts that are special tokens of this tokenizer."""
    added = {t.content for t in getattr(tokenizer, "added_tokens_decoder", {}).values() if t.special}
    return {t for t in (*added, *tokenizer.all_special_tokens) if t.strip()}


def _encode(tokenizer: Any, text: str) -> list[int]:
    return [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _encode_plain(tokenizer: Any, text: str) -> list[int]:
    """Opening special tokens + text. Some tokenizers also append EOS, which would end the prompt: it is left off."""
    bare = _encode(tokenizer, text)
    full = [int(i) for i in tokenizer(text)["input_ids"]]
    extra = len(full) - len(bare)
    at = next((i for i in range(extra + 1) if full[i : i + len(bare)] == bare), None) if extra >= 0 else None
    if at is None:
        raise DataError(f"the tokenizer encodes {text[:60]!r} differently with special tokens than without")
    # A text that was rendered elsewhere may bring its own opening tokens.
    opening = [] if bare[:at] == full[:at] else full[:at]
    return [*opening, *bare]


def _eos(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no EOS token, so a response could never end; set tokenizer.eos_token")
    return int(tokenizer.eos_token_id)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
