"""The policy as its own teacher: shown something, it says what it would have answered at every position.

A teacher decides what is shown beside which response (and leaves out those that have nothing to be shown), and
`Distillation` pulls the policy's whole next-token distribution towards the one under the longer prompt.  What must be
measured is declared as a `Divergence`; the policy's pass fills it in, as it fills in `logp`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch, Value
from unipo.errors import ConfigError, DataError, unknown
from unipo.parts.part import Divergence, Objective, Pieces, Scorer, Selection, Signal, log_ratio

MARK = "{shown}"
KINDS: Mapping[str, str] = {
    "jsd": "b KL(p_T||m) + (1-b) KL(p||m), m = (1-b) p + b p_T, b = {beta:g}",
    "kl": "KL(p||p_T)",
    "reverse_kl": "KL(p_T||p)",
    "sampled": "sg[log p(y) - log p_T(y)] log p(y)",
}
WEIGHTS = ("policy", "reference")


def with_text(prompt: str | Sequence[Mapping[str, Any]], text: str) -> str | list[Mapping[str, Any]]:
    """A prompt with text put at the end of what the user said last."""
    if isinstance(prompt, str):
        return prompt + text
    users = [i for i, message in enumerate(prompt) if message.get("role") == "user"]
    if not users or not isinstance(prompt[users[-1]].get("content"), str):
        raise DataError(f"a teacher's text is put after the user's last words, and this prompt has none: {prompt!r}")
    at = users[-1]
    edited = {**prompt[at], "content": f"{prompt[at]['content']}{text}"}
    return [*prompt[:at], edited, *prompt[at + 1 :]]


@dataclass(frozen=True)
class Teacher(Selection):
    """Base. template: what is put after the user's words, with "{shown}" where the shown text goes."""

    level: ClassVar[str] = "sequence"
    template: str = f"\n\n{MARK}"

    def __post_init__(self) -> None:
        if self.template.count(MARK) != 1:
            raise ConfigError(f"{type(self).__name__}.template must hold {MARK} once, got {self.template!r}")

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (TeacherPrompt(self),)

    def show(self, batch: Batch, sequence: int, scorer: Scorer) -> str:
        """The text shown beside one response that this selection keeps."""
        raise NotImplementedError


@dataclass(frozen=True)
class TeacherPrompt(Signal):
    """Token ids of the teacher's prompt for every response that counts, rendered as the run renders prompts."""

    source = "OPSD (arXiv 2601.18734); SDPO (2601.20802)"
    adds: ClassVar[tuple[str, ...]] = ("teacher_context",)
    level: ClassVar[str] = "sequence"
    teacher: Teacher = Teacher()

    @property
    def needs(self) -> tuple[str, ...]:
        return (*self.teacher.needs, "prompt", "mask")

    def __call__(self, batch: Batch, scorer: Scorer) -> Mapping[str, Value]:
        layout = batch.layout
        counts = (layout.seq_count(batch.mask) > 0) & self.teacher(batch)
        contexts: list[list[int] | None] = [None] * layout.n_sequences
        known: dict[tuple[int, str], list[int]] = {}
        for i in counts.nonzero().flatten().tolist():
            place = int(layout.seq_prompt[i]), self.teacher.show(batch, i, scorer)
            if place not in known:
                text = self.teacher.template.replace(MARK, place[1])
                known[place] = scorer.prompt(with_text(batch.prompt[place[0]], text))
            contexts[i] = known[place]
        return {"teacher_context": contexts}

    def formula(self) -> str:
        return "p_T = pi_T(. | x with what is shown, y_<t)"


@dataclass(frozen=True)
class SolutionTeacher(Teacher):
    """Shows the worked solution of the prompt's data row; a prompt without one is left out.

    Source: OPSD (arXiv 2601.18734), siyan-zhao/OPSD: data_collator.py, which puts the solution and a request to derive
    the answer independently after the problem.  The wording here is our own.
    """

    source = "OPSD (arXiv 2601.18734); siyan-zhao/OPSD: data_collator.py"
    template: str = f"\n\nA worked solution:\n{MARK}\n\nNow solve the problem in your own way, step by step."

    @property
    def needs(self) -> tuple[str, ...]:
        return ("solution",)

    def __call__(self, batch: Batch) -> Tensor:
        has = torch.tensor([s is not None for s in batch.solution], dtype=torch.bool, device=batch.layout.device)
        return batch.layout.to_sequences(has)

    def show(self, batch: Batch, sequence: int, scorer: Scorer) -> str:
        return str(batch.solution[int(batch.layout.seq_prompt[sequence])])

    def formula(self) -> str:
        return "shown: the solution of the data row; m_it = 0 without one"


def first_right_sibling(right: Tensor, batch: Batch) -> Tensor:
    """[S] index of the first right response of the same prompt that is not this one itself; -1 if there is none.

    right: [S] bool.
    """
    layout = batch.layout
    place = torch.arange(layout.n_sequences, device=right.device)
    never = layout.n_sequences
    first = layout.group_min(torch.where(right, place, never))
    spread = layout.to_sequences(first)
    later = right & (place != spread)
    second = layout.to_sequences(layout.group_min(torch.where(later, place, never)))
    chosen = torch.where(spread == place, second, spread)
    return torch.where(chosen < never, chosen, -1)


def without_thinking(text: str) -> str:
    """What stands outside <think> ... </think>, also where the prompt opened it. Unfinished thinking stays."""
    text = re.sub(r"<think>.*?</think>\s*", "", text, flags=re.DOTALL)
    return re.sub(r"^.*?</think>\s*", "", text, flags=re.DOTALL)


@dataclass(frozen=True)
class SiblingTeacher(Teacher):
    """Shows a right response to the same prompt, the first that is not the response itself; none: left out.

    right: a score of at least this counts as right.  thinking: whether the shown response keeps what it thought.
    Source: SDPO (arXiv 2601.20802), lasgroup/SDPO: ray_trainer.py.  The wording here is our own; its environment
    feedback is not built, because rewards here give numbers and no words.
    """

    source = "SDPO (arXiv 2601.20802); lasgroup/SDPO: ray_trainer.py"
    smallest_group: ClassVar[int] = 2
    template: str = f"\n\nA correct solution:\n\n{MARK}\n\nNow solve the question correctly."
    right: float = 1.0
    thinking: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        return ("score", "scored", "tokens")

    def _chosen(self, batch: Batch) -> Tensor:
        return first_right_sibling(batch.scored & (batch.score >= self.right), batch)

    def __call__(self, batch: Batch) -> Tensor:
        return self._chosen(batch) >= 0

    def show(self, batch: Batch, sequence: int, scorer: Scorer) -> str:
        layout, other = batch.layout, int(self._chosen(batch)[sequence])
        start = int(layout.seq_starts[other])
        text = scorer.text(batch.tokens[start : start + int(layout.seq_lengths[other])].tolist())
        return text if self.thinking else without_thinking(text)

    def formula(self) -> str:
        return f"shown: the first other response with score >= {self.right:g}; m_it = 0 without one"


@dataclass(frozen=True)
class Distillation(Objective):
    """Move the policy's next-token distribution towards its teacher's, on what the policy sampled.

        l_t = min(sg[rho_t], cap) D_t,   D = divergence of p = pi(.|x, y_<t) from p_T
    kind: 'jsd' (generalised Jensen-Shannon, beta), 'kl' KL(p||p_T), 'reverse_kl' KL(p_T||p), or 'sampled', whose
    gradient is that of KL(p||p_T) estimated at the sampled token.  top: only the policy's so many likeliest tokens
    and one bucket for the rest; 0 (or more than there are): the whole vocabulary.  temperature: of both distributions, None: that of sampling.
    cap: bound on the detached ratio against the policy that sampled; None leaves the ratio out.  weights: the
    teacher's, 'reference' or the 'policy' as it is now.  No gradient reaches the teacher.
    Source: OPSD (arXiv 2601.18734), opsd_trainer.py; SDPO (2601.20802), lasgroup/SDPO core_algos.py; GKD (2306.13649).
    """

    source = "OPSD (arXiv 2601.18734); SDPO (2601.20802), lasgroup/SDPO: core_algos.py"
    kind: str = "jsd"
    beta: float = 0.5
    top: int = 0
    temperature: float | None = None
    cap: float | None = None
    weights: str = "reference"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("divergence", self.kind, KINDS)
        if self.weights not in WEIGHTS:
            raise unknown("weights", self.weights, WEIGHTS)
        if not 0 < self.beta < 1 or self.top < 0 or any(x is not None and x <= 0 for x in (self.temperature, self.cap)):
            raise ConfigError(f"Distillation: 0 < beta < 1, top >= 0, temperature and cap above 0 or None; got {self}")
        if self.kind == "sampled" and self.top:
            raise ConfigError("Distillation: kind 'sampled' looks at one token, so top must be 0")

    @property
    def needs(self) -> tuple[str, ...]:
        base = ("divergence", "teacher_context", "mask")
        return base if self.cap is None else (*base, "logp", "old_logp")

    @property
    def divergence(self) -> Divergence:
        return Divergence(self.kind, self.beta, self.top, self.temperature, self.weights)

    def __call__(self, batch: Batch) -> Tensor:
        value = torch.where(batch.mask, batch.divergence, torch.zeros_like(batch.divergence))
        if self.cap is None:
            return value
        return log_ratio(batch.logp.detach(), batch.old_logp, batch.mask).exp().clamp(max=self.cap) * value

    def pieces(self, batch: Batch) -> Pieces:
        raise NotImplementedError("a divergence moves every token of the vocabulary, not only the sampled one")

    def formula(self) -> str:
        text = KINDS[self.kind].format(beta=self.beta)
        text += f" over the {self.top} likeliest and a tail" if self.top else ""
        text += "" if self.temperature is None else f" at temperature {self.temperature:g}"
        text = f"({text})" if self.cap is None else f"min(sg[rho_it], {self.cap:g}) ({text})"
        teacher = "the reference" if self.weights == "reference" else "the policy itself"
        return f"l_it = {text},  p = pi(.|x, y_<t), p_T of {teacher}, without gradient"
