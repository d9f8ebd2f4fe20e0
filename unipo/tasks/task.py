"""What a task is: prompts with answers, split into train and held-out, and the way to score a response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

Message = Mapping[str, Any]  # {"role": "user" | "assistant" | "system", "content": str}


@dataclass(frozen=True)
class Response:
    """A response that came with the data: a demonstration, or one side of a preference.

    text: what the assistant says, without the prompt.  preference: higher is better inside its group.
    """

    text: str
    preference: float = 1.0


@dataclass(frozen=True)
class Example:
    """One prompt. `prompt` is chat messages, or plain text for a model without a chat template.

    answer: ground truth as text, None if there is none.  responses: empty for on-policy data.
    row: the whole data row, given to reward functions as keyword arguments.  id: place in the data.
    images: what the marks `<image>` of the prompt stand for, in order (see `unipo.tasks.pictures.open_picture`).
    """

    prompt: str | Sequence[Message]
    answer: str | None = None
    responses: tuple[Response, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0
    images: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One sampled response as a reward sees it. `length` counts tokens, the end token included."""

    prompt: str
    text: str
    answer: str | None = None
    row: Mapping[str, Any] = field(default_factory=dict)
    length: int = 0
    truncated: bool = False


@dataclass(frozen=True)
class Scores:
    """What a reward says of a batch of samples, one entry each.

    total: the reward; None where the sample cannot be scored (it then leaves every statistic).
    parts: each component before weighting, by name.  extracted: the final answer found, or None.
    score: the task's own score (1 = right), which dynamic sampling and accuracy use.
    events: how often something named was counted and skipped ("raised", "timeout", ...).
    """

    total: list[float | None]
    score: list[float | None]
    parts: Mapping[str, list[float | None]] = field(default_factory=dict)
    extracted: list[str | None] = field(default_factory=list)
    events: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class Reward(Protocol):
    """Scores samples. Must return one entry per sample, in order."""

    @property
    def name(self) -> str:
        """What the reward is called in logs and reports."""
        ...

    def __call__(self, samples: Sequence[Sample]) -> Scores: ...


@runtime_checkable
class Task(Protocol):
    """Prompts and their reward. `train` and `heldout` never share a prompt."""

    @property
    def name(self) -> str:
        """What the task is called in logs and reports."""
        ...

    @property
    def train(self) -> Sequence[Example]:
        """Prompts to learn from."""
        ...

    @property
    def heldout(self) -> Sequence[Example]:
        """Prompts to be evaluated on; empty if none were kept."""
        ...

    @property
    def reward(self) -> Reward | None:
        """How a sampled response is scored; None for data that is learnt from as it is."""
        ...
