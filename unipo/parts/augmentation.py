"""Prompts made harder or easier by how the policy does on them: noise on images, and the beginning of a solution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.parts.curriculum import Curriculum, Hint, Noise, Rewrites


def relative_difficulty(reward: Sequence[float], recent: Sequence[float]) -> list[float]:
    """How much worse than usual the policy did on each prompt: D = mean(recent) - reward; positive is hard.

    reward: [P] mean rewards of groups; recent: those of the past, not empty.  Returns [P] in units of reward.
    Source: DeepVideo-R1 (arXiv 2506.07464), difficulty-aware data augmentation.
    """
    usual = sum(recent) / len(recent)
    return [usual - r for r in reward]


@dataclass(frozen=True)
class DifficultyAugmentation(Curriculum):
    """Harder prompts become easier by the beginning of a solution, easier ones harder by noise on their images.

        D(x) = mean reward of the last `window` groups - mean reward of x's group,   s = min(1, |D| / full)
        D > 0: `traces` solutions are sampled with the answer in view; the first s of the best-rewarded one's tokens
               are put after the problem
        D < 0: normal noise of standard deviation noise * s on every pixel (black to white is 1)

    What is made of a prompt is sampled as a group of its own and learnt from in the original's place, or beside it
    (`keep_original`).  Groups before the first step is over, prompts without an answer to show, and easy prompts without
    images stay as they are.  The solutions themselves are not learnt from.
    answered, hint: how the answer and the beginning are put to the policy, this library's own words.  temperature,
    max_tokens: of the solutions; 0 tokens: the run's own budget.
    Source: DeepVideo-R1 (arXiv 2506.07464), difficulty-aware data augmentation.  The authors' code could not be read.
    Unsure: both scales are reconstructed (full, noise, and that they are linear), and whether the original stays.
    """

    source = "DeepVideo-R1 (arXiv 2506.07464), difficulty-aware data augmentation"
    adds: ClassVar[tuple[str, ...]] = ("variant",)
    window: int = 100
    full: float = 0.5
    noise: float = 0.5
    traces: int = 4
    keep_original: bool = False
    temperature: float = 1.0
    max_tokens: int = 0
    answered: str = "{problem}\nThe answer is {answer}."
    hint: str = "{problem}\nHint: {beginning}"

    def __post_init__(self) -> None:
        if self.window < 1 or self.traces < 1 or self.full <= 0 or self.noise < 0:
            raise ConfigError(f"DifficultyAugmentation: window, traces >= 1, full > 0, noise >= 0; got {self}")
        if self.temperature <= 0 or self.max_tokens < 0:
            raise ConfigError(f"DifficultyAugmentation: temperature > 0, max_tokens >= 0; got {self}")
        for name, text, fields in (
            ("answered", self.answered, ("{problem}", "{answer}")),
            ("hint", self.hint, ("{problem}", "{beginning}")),
        ):
            if any(f not in text for f in fields):
                raise ConfigError(f"DifficultyAugmentation.{name} must hold {' and '.join(fields)}, got {text!r}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "scored", "answer")

    @property
    def state_key(self) -> str:
        return "recent_rewards"

    @property
    def replaces(self) -> bool:
        return not self.keep_original

    def bound_to(self, max_tokens: int) -> Self:
        return self if self.max_tokens else replace(self, max_tokens=max_tokens)

    def rewrites(self, batch: Batch, problems: Sequence[str]) -> Rewrites | None:
        recent = batch.states.get(self.state_key, {}).get("recent", ())
        if not recent:
            return None
        asked: list[Hint | Noise] = []
        seen = batch.layout.group_count(batch.scored).tolist()
        apart = relative_difficulty(_group_rewards(batch), recent)
        for p, (count, d) in enumerate(zip(seen, apart, strict=True)):
            strength = min(1.0, abs(d) / self.full)
            if not count or not strength:
                continue
            if d > 0 and batch.answer[p] is not None:
                question = self.answered.replace("{problem}", problems[p]).replace("{answer}", str(batch.answer[p]))
                asked.append(Hint(p, question, "hard", self.traces, strength))
            elif d < 0 and self.noise and batch.has("images") and len(batch.images[p]):
                asked.append(Noise(p, "easy", self.noise * strength))
        return Rewrites(tuple(asked), self.temperature, self.max_tokens)

    def hinted(self, problem: str, beginning: str) -> str:
        return self.hint.replace("{problem}", problem).replace("{beginning}", beginning)

    def remember(self, batch: Batch) -> Mapping[str, Any]:
        before = batch.states.get(self.state_key, {}).get("recent", ())
        seen = batch.layout.group_count(batch.scored).tolist()
        now = [r for r, count in zip(_group_rewards(batch), seen, strict=True) if count]
        return {"recent": [*before, *now][-self.window :]}

    def formula(self) -> str:
        where = "beside x" if self.keep_original else "in place of x"
        budget = str(self.max_tokens or "max_tokens")
        return (
            f"D(x) = mean of the last {self.window} group rewards - mean_g R(x),  s = min(1, |D|/{self.full:g});  {where}:  "
            f"D > 0: x + first s of the best of {self.traces} solutions of {budget},  D < 0: images + {self.noise:g} s N(0, 1)"
        )


def _group_rewards(batch: Batch) -> list[float]:
    means: list[float] = batch.layout.group_mean(batch.reward, batch.scored).tolist()
    return means
