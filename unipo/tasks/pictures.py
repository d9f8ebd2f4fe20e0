"""Prompts with images: pictures from wherever data has them, and token ids with room for what they show.

In a prompt an image is the mark `<image>`; the pictures themselves stand beside it (`Example.images`), in order.  The
model's own processor turns both into token ids, in which every image has its placeholder tokens, and into pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unipo.errors import ConfigError, DataError, MissingExtra
from unipo.tasks.task import Message

if TYPE_CHECKING:
    from torch import Tensor

MARK = "<image>"


def open_picture(source: Any) -> Any:
    """A picture as PIL has it, in RGB.

    source: a path, a PIL image, an array [H, W] or [H, W, 3] of uint8, a file's bytes, or {"bytes", "path"} as
    `datasets` stores images.  Raises DataError for anything else and for what cannot be read.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", "vision", "reading images") from error
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    try:
        if isinstance(source, (str, Path)):
            if not Path(source).is_file():
                raise DataError(f"there is no image file {str(source)!r}")
            with Image.open(source) as opened:
                return opened.convert("RGB")
        if isinstance(source, (bytes, bytearray)):
            return Image.open(io.BytesIO(source)).convert("RGB")
        if hasattr(source, "__array_interface__") and str(getattr(source, "dtype", "")) == "uint8":
            return Image.fromarray(source).convert("RGB")
    except (OSError, ValueError, TypeError) as error:
        shown = source if isinstance(source, (str, Path)) else type(source).__name__
        raise DataError(f"{shown} is not an image that can be read ({error})") from error
    raise DataError(
        f"an image is a path, a PIL image, an array of uint8 or a file's bytes; this one is a {type(source).__name__}"
    )


def picture_key(source: Any) -> str:
    """What tells one picture from another, without reading files: the path, or the content."""
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, (str, Path)):
        return str(source)
    if isinstance(source, (bytes, bytearray)):
        return base64.b64encode(source).decode()
    picture = open_picture(source)
    return f"{picture.size} {base64.b64encode(picture.tobytes()).decode()}"


@dataclass(frozen=True)
class Pictures:
    """The pictures of a prompt and the image processor that makes pixels of them, when they are asked for.

    noise: standard deviation of normal noise on every pixel, where black to white is 1.
    """

    sources: tuple[Any, ...]
    image_processor: Any
    noise: float = 0.0

    def noisier(self, noise: float) -> Pictures:
        """The same pictures with so much noise."""
        return replace(self, noise=noise)

    def pixels(self, draw: int = 0) -> Tensor:
        """[n, C, H, W] in float32; [0, 3, 1, 1] for a prompt without any. draw: fixes the noise."""
        from unipo.batch import NO_IMAGES
        from unipo.chance import normal

        if not self.sources:
            return NO_IMAGES
        made = pixels_of(self.image_processor, [open_picture(s) for s in self.sources])
        if not self.noise:
            return made
        span = plain(self.image_processor, "white") - plain(self.image_processor, "black")
        return made + self.noise * span[:, None, None] * normal(made.shape, draw)


def pixels_of(image_processor: Any, pictures: Sequence[Any]) -> Tensor:
    """[n, C, H, W] pixels as the model is to be shown them."""
    made: Tensor = image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]
    if made.dim() != 4 or len(made) != len(pictures):
        raise ConfigError(f"the image processor makes pixel values {tuple(made.shape)} of {len(pictures)} images")
    return made


def plain(image_processor: Any, colour: str) -> Tensor:
    """[C] what a pixel of this colour is after the processor's scaling."""
    from PIL import Image

    return pixels_of(image_processor, [Image.new("RGB", (64, 64), colour)])[0, :, 0, 0]


# -- marks -----------------------------------------------------------------------------------------
def marked(prompt: str | Sequence[Message], count: int) -> str | Sequence[Message]:
    """The prompt with a mark for each of its `count` pictures. Without any mark, all come first in what the user says
    first. Raises DataError where there are some marks, but not so many."""
    texts = [prompt] if isinstance(prompt, str) else [str(m.get("content", "")) for m in prompt]
    found = sum(text.count(MARK) for text in texts)
    if found == count:
        return prompt
    if found:
        raise DataError(f"the prompt has {found} marks {MARK}, and there are {count} images")
    if isinstance(prompt, str):
        return MARK * count + prompt
    first = next((i for i, m in enumerate(prompt) if m.get("role") == "user"), None)
    if first is None:
        raise DataError("a prompt with images needs a user message to put them in")
    shown = {**prompt[first], "content": MARK * count + str(prompt[first].get("content", ""))}
    return [*prompt[:first], shown, *prompt[first + 1 :]]


def in_parts(message: Message) -> dict[str, Any]:
    """The message with its content as a list of texts and images, as the templates of such models expect it."""
    parts: list[dict[str, str]] = []
    for i, text in enumerate(str(message.get("content", "")).split(MARK)):
        parts += [{"type": "image"}] if i else []
        parts += [{"type": "text", "text": text}] if text else []
    return {**message, "content": parts}


def without_marks(message: Message) -> Message:
    """A message without the marks where images stand."""
    return {**message, "content": str(message.get("content", "")).replace(MARK, "")}


# -- tokens ----------------------------------------------------------------------------------------
def render(processor: Any, messages: Sequence[Message], generation: bool) -> str:
    """The conversation as text through the processor's template (or its tokenizer's)."""
    owner = processor if getattr(processor, "chat_template", None) else processor.tokenizer
    try:
        parts = [in_parts(m) for m in messages]
        return str(owner.apply_chat_template(parts, tokenize=False, add_generation_prompt=generation))
    except Exception as error:  # a template is a program of the model's author and may raise anything
        raise DataError(f"the chat template refuses {str(messages)[:80]}: {error}") from error


def encode_text(processor: Any, text: str, pictures: Sequence[Any]) -> list[int]:
    """Token ids of rendered text, with the placeholders of these images; no special tokens are added."""
    return [int(i) for i in inputs_of(processor, text, pictures)["input_ids"][0]]


def inputs_of(processor: Any, text: str, pictures: Sequence[Any]) -> dict[str, Any]:
    """Everything the processor makes of a text and its images, [1, ...] tensors."""
    try:
        made = processor(text=[text], images=list(pictures), return_tensors="pt", add_special_tokens=False)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise DataError(f"the processor refuses {text[-80:]!r} with {len(pictures)} images: {error}") from error
    return dict(made)
