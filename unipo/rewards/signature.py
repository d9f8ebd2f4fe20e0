"""How a reward function is called, read from the names of its parameters.

One sample at a time:   score(completion, answer, **row_fields) -> float | None
A whole batch:          score(completions=[...], prompts=[...], answers=[...], **columns) -> list

A function may take any of the names below and any field of the data row; it gets only what it names, or
everything with **kwargs.  Naming `completions` (or `texts`, `responses`) makes it a batch function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unipo.errors import ConfigError, RewardError
from unipo.tasks.task import Sample

FIELDS: Mapping[str, Callable[[Sample], Any]] = {
    "completion": lambda sample: sample.text,
    "prompt": lambda sample: sample.prompt,
    "answer": lambda sample: sample.answer,
    "row": lambda sample: dict(sample.row),
    "length": lambda sample: sample.length,
    "truncated": lambda sample: sample.truncated,
}
SINGLE = {**{name: name for name in FIELDS}, "text": "completion", "response": "completion"}
# `answer` and `prompt` beside `completions` is how TRL hands over data columns; both spellings are lists there.
BATCH = {
    **{f"{name}s": name for name in FIELDS if name != "truncated"},
    **{f"{name}s": "completion" for name in ("text", "response")},
    **{name: name for name in ("prompt", "answer", "length", "truncated")},
}
TEXT_SINGLE = ("completion", "text", "response")
TEXT_BATCH = ("completions", "texts", "responses")
HELP = (
    "It may take, one sample at a time: completion (or text, or response), prompt, answer, row, length, truncated, "
    "fields of the data row, **kwargs; or, for a whole batch, lists under the names completions (or texts, or "
    "responses), prompts, answers, rows, lengths, truncated, fields of the data row, **kwargs"
)


@dataclass(frozen=True)
class Signature:
    """The parameters of a reward function. required and optional: names; everything: it takes **kwargs."""

    batch: bool
    required: tuple[str, ...]
    optional: tuple[str, ...]
    everything: bool

    def arguments(self, sample: Sample, name: str) -> dict[str, Any]:
        """Keyword arguments for one sample. Raises RewardError if the data row lacks a field that it requires."""
        given: dict[str, Any] = {}
        for parameter in (*self.required, *self.optional):
            if parameter in SINGLE:
                given[parameter] = FIELDS[SINGLE[parameter]](sample)
            elif parameter in sample.row:
                given[parameter] = sample.row[parameter]
            elif parameter in self.required:
                raise _lacking(name, parameter, sample)
        if self.everything:
            known = {SINGLE.get(parameter, parameter) for parameter in given}
            given |= {key: value for key, value in sample.row.items() if key not in SINGLE and key not in given}
            given |= {field: read(sample) for field, read in FIELDS.items() if field not in known and field != "row"}
        return given

    def columns(self, samples: Sequence[Sample], name: str) -> dict[str, list[Any]]:
        """Keyword arguments for a batch, each a list with one entry per sample.

        Raises RewardError if a row lacks a field that the function names and requires, or that it names and other
        rows of the batch have.  What arrives through **columns holds None where a row lacks it.
        """
        given: dict[str, list[Any]] = {}
        for parameter in (*self.required, *self.optional):
            if parameter in BATCH:
                given[parameter] = [FIELDS[BATCH[parameter]](sample) for sample in samples]
            elif parameter in self.required or any(parameter in sample.row for sample in samples):
                given[parameter] = _column(samples, parameter, name)
        if self.everything:
            known = {BATCH.get(parameter, parameter) for parameter in given}
            keys = dict.fromkeys(
                key for sample in samples for key in sample.row if key not in BATCH and key not in given
            )
            given |= {key: [sample.row.get(key) for sample in samples] for key in keys}
            plural = {field: key for key, field in BATCH.items() if key == f"{field}s" or field == "truncated"}
            left = [field for field in FIELDS if field not in known and field != "row"]
            given |= {plural[field]: [FIELDS[field](sample) for sample in samples] for field in left}
        return given


def _column(samples: Sequence[Sample], key: str, name: str) -> list[Any]:
    for sample in samples:
        if key not in sample.row:
            raise _lacking(name, key, sample)
    return [sample.row[key] for sample in samples]


def _lacking(name: str, parameter: str, sample: Sample) -> RewardError:
    fields = ", ".join(map(str, sample.row)) or "none"
    return RewardError(
        f"reward {name!r} asks for {parameter!r}, which is not a field of the data row (its fields: {fields}). {HELP}"
    )


def read_signature(function: Callable[..., Any]) -> Signature:
    """The signature of a reward function. Raises ConfigError, naming the parameters it may take, if it is none."""
    label = getattr(function, "__qualname__", type(function).__name__)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the parameters of reward function {label!r} cannot be read ({error}). {HELP}") from error
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"reward function {label!r} is async; wrap it in one that runs it, e.g. with asyncio.run")
    shown = f"reward function {label}({', '.join(map(str, parameters.values()))})"
    for kind, word in (
        (inspect.Parameter.POSITIONAL_ONLY, "positional-only parameters"),
        (inspect.Parameter.VAR_POSITIONAL, "*args"),
    ):
        if any(parameter.kind is kind for parameter in parameters.values()):
            raise ConfigError(f"{shown} has {word}, but reward functions are called with keywords. {HELP}")
    everything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {key: p for key, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    single, batch = [n for n in TEXT_SINGLE if n in named], [n for n in TEXT_BATCH if n in named]
    if len(single) + len(batch) > 1:
        raise ConfigError(f"{shown} names the completion more than once: {', '.join(single + batch)}. {HELP}")
    if not single and not batch and not everything:
        raise ConfigError(f"{shown} does not take the completion. {HELP}")
    required = tuple(key for key, p in named.items() if p.default is inspect.Parameter.empty)
    return Signature(bool(batch), required, tuple(key for key in named if key not in required), everything)
