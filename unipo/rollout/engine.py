"""What an engine is: token ids in, token ids out, with the exact log-probability of every sampled token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from unipo.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """The distribution that is sampled, shared by sampler and trainer.

    temperature 0 is greedy.  top_k 0 and top_p 1 leave the distribution whole; anything else truncates it, which
    is refused for training (ratios would be off by the kept mass) and recorded exactly for evaluation.
    max_tokens: budget of a response, end token included.  stop: texts that end a response (they stay in it).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 64
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.max_tokens < 1:
            raise ConfigError(
                f"sampling needs temperature >= 0, 0 < top_p <= 1, top_k >= 0 and max_tokens >= 1; got {self}"
            )

    @property
    def whole(self) -> bool:
        """Is the full distribution sampled, so that its log-probs are the policy's?"""
        return self.temperature > 0 and self.top_k == 0 and self.top_p == 1.0


@dataclass(frozen=True)
class Request:
    """n responses to one prompt, or n continuations of a response that has begun.

    seed: with the sample's number and a token's place in the response it fixes every random choice; so the prefix of a
    response, continued with its own seed and number, becomes that response again while the weights stand still.
    prefix: tokens the response begins with; they count in the budget, and are not part of what comes back.
    limit: at most so many new tokens; 0 is what the budget leaves.  first: number of the first sample.
    images: [n, C, H, W] pixels of the prompt's images, None for a prompt in words.
    """

    prompt: Sequence[int]
    n: int = 1
    seed: int = 0
    prefix: Sequence[int] = ()
    limit: int = 0
    first: int = 0
    images: Tensor | None = None

    def room(self, max_tokens: int) -> int:
        """New tokens that each response may have under this budget."""
        left = max_tokens - len(self.prefix)
        return min(left, self.limit) if self.limit else left


@dataclass(frozen=True)
class Rollout:
    """One response, or what was added to its prefix.

    tokens, logp, entropy: [length]; truncated: the budget (or the request's limit) ended it, not an end token.
    taped: [length] row of the engine's tape that predicted each token, None if there is no tape.
    columns: [length, ...] further token columns that this engine makes, by name.
    """

    tokens: Tensor
    logp: Tensor
    entropy: Tensor
    truncated: bool
    taped: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class EngineStats:
    """Counted during one `generate`. steps: decoding steps; positions: rows forwarded; prompts: prefilled tokens.

    seconds: wall time.  sampled: tokens of all responses.  decoder: which decoder ran, and why if not the lean one.
    """

    steps: int = 0
    positions: int = 0
    prompts: int = 0
    seconds: float = 0.0
    sampled: int = 0
    decoder: str = ""


@runtime_checkable
class Engine(Protocol):
    """Generates. `exact`: its log-probs equal the trainer's to float noise, so none need recomputing."""

    exact: bool
    stats: EngineStats

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] | None = None
    ) -> list[list[Rollout]]:
        """One list of n rollouts per request, in order. progress is called with the number of finished responses."""
        ...

    def sync(self) -> None:
        """Take over the policy's present weights."""
        ...
