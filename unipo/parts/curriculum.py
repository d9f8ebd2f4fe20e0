"""Which prompts come next: mixtures of domains that follow the rewards, and prompts the policy rewrites itself."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError, unknown
from unipo.parts.difficulty import EASY_FROM, HARD_UP_TO, difficulty
from unipo.parts.part import Part


@dataclass(frozen=True)
class Rewrite:
    """A prompt to be made of another. prompt: its place in the batch; instruction: what the policy is told; label:
    what the column `variant` calls the result."""

    prompt: int
    instruction: str
    label: str


@dataclass(frozen=True)
class Hint:
    """A prompt to be continued with the beginning of a solution of its own.

    question: the problem as it is shown to the policy for that, with its answer; traces: solutions to sample; share:
    of the best-rewarded one's tokens, how many are given.
    """

    prompt: int
    question: str
    label: str
    traces: int
    share: float


@dataclass(frozen=True)
class Noise:
    """A prompt whose images are to be disturbed. std: of the noise, where black to white is 1."""

    prompt: int
    label: str
    std: float


@dataclass(frozen=True)
class Rewrites:
    """Prompts to make of others, and how what the policy writes for it is sampled."""

    requests: tuple[Rewrite | Hint | Noise, ...]
    temperature: float
    max_tokens: int


@dataclass(frozen=True)
class Curriculum(Part):
    """Which prompts come next: how many of which pool, and which are made out of others.

    Every prompt belongs to a pool, and the prompts of a pool come in endless passes, each in its own shuffled
    order.  `remember` is called once per step with everything that was sampled, before any selection drops some.
    This base keeps one pool: the data as it is.
    """

    def pool(self, row: Mapping[str, Any], prompt_id: int) -> str:
        """The pool a prompt belongs to. row: its data row; prompt_id: its number in the data."""
        return ""

    def counts(self, memory: Mapping[str, Any], sizes: Mapping[str, int], n: int, draw: torch.Generator) -> list[int]:
        """How many of the next n prompts come from each pool. sizes: prompts in each, in order.

        Deterministic in its arguments; `draw` is the place for chance.
        """
        return [n, *[0] * (len(sizes) - 1)]

    def rewrites(self, batch: Batch, problems: Sequence[str]) -> Rewrites | None:
        """What shall be made of the prompts after a sampling round. problems: [P] text of each prompt."""
        return None

    def accept(self, text: str) -> str | None:
        """The rewritten prompt in what the policy wrote; None if there is none."""
        return text

    def hinted(self, problem: str, beginning: str) -> str:
        """The problem with the beginning of a solution."""
        return f"{problem}\n{beginning}"

    @property
    def replaces(self) -> bool:
        """Whether what is made of a prompt is learnt from in its place, rather than beside it."""
        return False


# -- mixtures of domains -----------------------------------------------------------------------------
def domain_weights(reward: Mapping[str, float], target: float, tau: float) -> dict[str, float]:
    """Weight of each domain by how far its reward is below the target:

        v_d = max(0, target - r_d);   w_d = exp(v_d / tau) / sum_j exp(v_j / tau)
    The code adds eps = 0.1 to every v, which cancels.  Equal v give equal weights.
    Source: RuleReasoner (arXiv 2506.08672); bigai-nlco/RuleReasoner: verl/verl/trainer/ppo/ray_trainer.py.
    """
    below = {d: max(0.0, target - r) / tau for d, r in reward.items()}
    top = max(below.values(), default=0.0)
    raw = {d: math.exp(v - top) for d, v in below.items()}
    total = math.fsum(raw.values())
    return {d: w / total for d, w in raw.items()}


def domain_counts(weights: Sequence[float], n: int) -> list[int]:
    """Whole numbers that add up to n: floor(n w_d) each, the rest one by one to the largest weights.

    Source: RuleReasoner (arXiv 2506.08672), its batch sampler.
    """
    counts = [math.floor(round(n * w, 6)) for w in weights]  # weights that are equal but for a rounding count alike
    order = sorted(range(len(weights)), key=lambda d: (-weights[d], d))
    for d in order[: n - sum(counts)]:
        counts[d] += 1
    return counts


DOMAIN_FIELDS = ("domain", "data_source", "kind")  # the second is what verl's data calls it
_INITIAL = ("uniform", "inverse_sqrt", "softmax_inverse_sqrt")


@dataclass(frozen=True)
class DomainWeights(Curriculum):
    """Draw more prompts from the domains whose reward is furthest below a target.

    See `domain_weights` and `domain_counts`.  Every `every` steps r_d, the mean score of a domain, is renewed from
    that step's responses: r_d <- smooth r_d + (1 - smooth) now, without smoothing at its first time.  A domain the
    step did not see keeps its r_d (the code forgets it and never draws it again); one that was never seen counts
    as 0, so it is drawn soon.
    field: of the data row, names the domain; '' takes the first of domain, data_source and kind that the row has.
    initial: weights before the first renewal, 'uniform',
    'inverse_sqrt' of the domain's size or the 'softmax_inverse_sqrt' of it.
    smooth = 0 with target = 0.5208 is what the released trainer computes: undiscounted rewards against the mean
    discount (1 + 1/2 + 1/3 + 1/4)/4.
    Source: RuleReasoner (arXiv 2506.08672); bigai-nlco/RuleReasoner: verl/verl/trainer/ppo/ray_trainer.py.
    """

    source = "RuleReasoner (arXiv 2506.08672); bigai-nlco/RuleReasoner: verl/verl/trainer/ppo/ray_trainer.py"
    field: str = ""
    every: int = 8
    target: float = 1.0
    tau: float = 0.3
    smooth: float = 0.5
    initial: str = "uniform"

    def __post_init__(self) -> None:
        if self.every < 1 or self.tau <= 0 or not 0 <= self.smooth < 1:
            raise ConfigError(f"DomainWeights: every >= 1, tau > 0, 0 <= smooth < 1; got {self}")
        if self.initial not in _INITIAL:
            raise unknown("DomainWeights.initial", self.initial, _INITIAL)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("row", "prompt_id", "score", "scored")

    @property
    def state_key(self) -> str:
        return "domain_weights"

    def pool(self, row: Mapping[str, Any], prompt_id: int) -> str:
        names = (self.field,) if self.field else DOMAIN_FIELDS
        found = next((row[name] for name in names if row.get(name) is not None), None)
        if found is None:
            raise DataError(
                f"data row {prompt_id} has no {' or '.join(map(repr, names))} to tell its domain by "
                f"(it has: {', '.join(row) or 'nothing'}); name the field with --set curriculum.field=..."
            )
        return str(found)

    def counts(self, memory: Mapping[str, Any], sizes: Mapping[str, int], n: int, draw: torch.Generator) -> list[int]:
        reward = memory.get("reward")
        if reward is None:
            weights = _initial_weights(self.initial, list(sizes.values()))
        else:
            known = domain_weights({d: reward.get(d, 0.0) for d in sizes}, self.target, self.tau)
            weights = list(known.values())
        return domain_counts(weights, n)

    def remember(self, batch: Batch) -> Mapping[str, Any]:
        memory: Mapping[str, Any] = batch.states.get(self.state_key, {})
        if batch.step % self.every:
            return memory
        pools = [self.pool(row, i) for row, i in zip(batch.row, batch.prompt_id.tolist(), strict=True)]
        seen: dict[str, list[float]] = {}
        owner = batch.layout.seq_prompt.tolist()
        for p, score, scored in zip(owner, batch.score.tolist(), batch.scored.tolist(), strict=True):
            if scored:
                seen.setdefault(pools[p], []).append(score)
        reward = dict(memory.get("reward", {}))
        for domain in sorted(seen):
            now = math.fsum(seen[domain]) / len(seen[domain])
            reward[domain] = self.smooth * reward[domain] + (1 - self.smooth) * now if domain in reward else now
        return {"reward": reward} if reward else memory

    def formula(self) -> str:
        return (
            f"n_d of B by floor(B w_d), rest to the largest;  w = softmax(max(0, {self.target:g} - r_d)/{self.tau:g}) "
            f"over {self.field or 'domains'};  every {self.every} steps r_d <- {self.smooth:g} r_d + {1 - self.smooth:g} mean score"
        )


def _initial_weights(kind: str, sizes: Sequence[int]) -> list[float]:
    if kind == "uniform":
        return [1 / len(sizes)] * len(sizes)
    raw = [1 / math.sqrt(n) for n in sizes]
    raw = [math.exp(x) for x in raw] if kind == "softmax_inverse_sqrt" else raw
    return [x / math.fsum(raw) for x in raw]


# -- prompts made of prompts -------------------------------------------------------------------------
_HARD = (
    "Write the problem below again so that it is simpler to understand: short sentences, no needless words, and "
    "what is only implied said outright."
)
_MEDIUM = (
    "Write the problem below again in other words: another sentence structure and other expressions, with exactly "
    "the same meaning."
)
_RULES = (
    "Keep every number, condition and question, and any instruction on how the answer is to be written. The answer "
    "must stay the same{answer}. Do not solve the problem and do not explain anything. Put the new problem, and "
    "nothing else, into one code block:\n```text\n(the new problem)\n```\n\nThe problem:\n{problem}"
)
_BLOCKS = (re.compile(r"```text[ \t]*\n(.*?)```", re.DOTALL), re.compile(r"```[^\n`]*\n?(.*?)(?:```|\Z)", re.DOTALL))
_MODES = ("both", "hard", "medium")


@dataclass(frozen=True)
class RewriteByDifficulty(Curriculum):
    """The policy rewrites the prompts it finds hard (simpler) and medium (otherwise worded), with the same answer.

    Difficulty is the share of right responses in the group just sampled (see `difficulty`).  The instruction shows
    the problem and its answer, which is not to be given away.  One reply each is sampled and its first code block
    taken (the whole reply if there is none), if it is longer than `shortest` and shorter than `longest`
    characters.  What it becomes is sampled as a group of its own; a rewriting that changed the answer or gave it
    away is all wrong or all right, and `MixedOutcomes` drops it.  The replies are not trained on.
    modes: 'both', 'hard' or 'medium'.  temperature, max_tokens: of the replies.
    The instructions are this library's own words for what the code asks.
    Source: CLPO (arXiv 2509.25004); csuking/CLPO: verl/trainer/ppo/ray_trainer.py, RayCLPOTrainer.
    """

    source = "CLPO (arXiv 2509.25004); csuking/CLPO: verl/trainer/ppo/ray_trainer.py"
    adds: ClassVar[tuple[str, ...]] = ("variant",)
    modes: str = "both"
    hard_up_to: float = HARD_UP_TO
    easy_from: float = EASY_FROM
    temperature: float = 0.7
    max_tokens: int = 400
    shortest: int = 10
    longest: int = 2000

    def __post_init__(self) -> None:
        if self.modes not in _MODES:
            raise unknown("RewriteByDifficulty.modes", self.modes, _MODES)
        if self.temperature <= 0 or self.max_tokens < 1 or not 0 <= self.hard_up_to <= self.easy_from <= 1:
            raise ConfigError(
                f"RewriteByDifficulty: temperature > 0, max_tokens >= 1, 0 <= hard_up_to <= easy_from <= 1; got {self}"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        return ("score", "scored", "answer")

    def rewrites(self, batch: Batch, problems: Sequence[str]) -> Rewrites | None:
        asked = []
        scored = batch.layout.group_count(batch.scored).tolist()
        labels = difficulty(batch, self.hard_up_to, self.easy_from)
        for p, (label, count) in enumerate(zip(labels, scored, strict=True)):
            if count and label != "easy" and self.modes in ("both", label):
                asked.append(Rewrite(p, self.instruction(label, problems[p], batch.answer[p]), label))
        return Rewrites(tuple(asked), self.temperature, self.max_tokens)

    def instruction(self, label: str, problem: str, answer: str | None) -> str:
        """What the policy is told. label: 'hard' or 'medium'."""
        told = "" if answer is None else f" ({answer}), and must not be given away or hinted at"
        return f"{_HARD if label == 'hard' else _MEDIUM} {_RULES.format(answer=told, problem=problem)}"

    def accept(self, text: str) -> str | None:
        found = next((m for pattern in _BLOCKS if (m := pattern.search(text))), None)
        new = (found[1] if found else text).strip()
        return new if self.shortest < len(new) < self.longest else None

    def formula(self) -> str:
        who = {"both": "hard and medium", "hard": "hard", "medium": "medium"}[self.modes]
        return (
            f"x' ~ pi_old(rewrite x, same answer) for {who} x, then sampled like x;  "
            f"hard: mean score <= {self.hard_up_to:g}, medium: <= {self.easy_from:g}"
        )
