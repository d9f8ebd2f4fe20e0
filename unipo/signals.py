"""Columns that models compute: the reference's log-probs, the old policy's, and scores under an edited prompt.

A signal is run only if some part of the method needs one of its columns, once per batch, and not at all at
steps where it says it is inactive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import DataError
from unipo.layout import Layout
from unipo.parts.part import Scorer, Signal


@dataclass(frozen=True)
class ReferenceLogp(Signal):
    """Log-probs under the reference policy: adapters off, a frozen copy, or an average of past weights."""

    adds: ClassVar[tuple[str, ...]] = ("reference_logp",)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("tokens", "context")

    def __call__(self, batch: Batch, scorer: Scorer) -> dict[str, Tensor]:
        return {"reference_logp": scorer.logp(batch, "reference")}

    def formula(self) -> str:
        return "log pi_ref(y_t | x, y_<t)"


@dataclass(frozen=True)
class OldLogp(Signal):
    """Log-probs under the policy at the start of the update batch, computed by the trainer's own forward."""

    adds: ClassVar[tuple[str, ...]] = ("old_logp",)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("tokens", "context")

    def __call__(self, batch: Batch, scorer: Scorer) -> dict[str, Tensor]:
        return {"old_logp": scorer.logp(batch, "policy")}

    def formula(self) -> str:
        return "log pi_old(y_t | x, y_<t)"


@dataclass(frozen=True)
class Values(Signal):
    """What the value model expects, before this batch moves it; read before each token is written."""

    adds: ClassVar[tuple[str, ...]] = ("value",)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("tokens", "context")

    def __call__(self, batch: Batch, scorer: Scorer) -> dict[str, Tensor]:
        return {"value": scorer.value(batch)}

    def formula(self) -> str:
        return "V(s_t),  s_t = (x, y_<t)"


@dataclass(frozen=True)
class CurrentLogp(Signal):
    """Log-probs of a whole minibatch under the weights that are about to be updated.

    For what an objective counts over the minibatch before it is cut (`Objective.prepare`).  Free at the first
    update of a batch, where they are the old policy's; otherwise one pass without gradient.
    """

    adds: ClassVar[tuple[str, ...]] = ("current_logp",)
    per_step: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        return ("tokens", "context")

    def __call__(self, batch: Batch, scorer: Scorer) -> dict[str, Tensor]:
        return {"current_logp": scorer.logp(batch, "policy")}

    def formula(self) -> str:
        return "log pi_now(y_t | x, y_<t), at the start of each optimiser step"


def with_contexts(batch: Batch, contexts: Sequence[Tensor]) -> Batch:
    """The same responses after other prompts. contexts: [P] token ids of each; only `context` changes."""
    layout = batch.layout
    if len(contexts) != layout.n_prompts:
        raise ValueError(f"{len(contexts)} contexts for {layout.n_prompts} prompts")
    lengths = torch.tensor([len(c) for c in contexts], dtype=torch.int64, device=layout.device)
    edited = Batch(
        Layout(layout.seq_lengths, layout.group_sizes, lengths), step=batch.step, total_steps=batch.total_steps
    )
    context = torch.cat(list(contexts)) if contexts else batch.context
    edited = edited.with_columns(context=context, tokens=batch.tokens, trainable=batch.trainable)
    return edited.with_columns(None, images=batch.images) if batch.has("images") else edited


def with_evidence(batch: Batch, evidence: list[list[int]]) -> Batch:
    """The same responses after a longer prompt: each context gets its evidence tokens appended.

    evidence: [P] token ids.  Positions of the responses shift by the evidence's length.
    """
    layout = batch.layout
    if len(evidence) != layout.n_prompts:
        raise ValueError(f"{len(evidence)} pieces of evidence for {layout.n_prompts} prompts")
    contexts = batch.context.split(layout.context_lengths.tolist())
    return with_contexts(
        batch,
        [
            torch.cat([context, torch.tensor(extra, dtype=context.dtype, device=context.device)])
            for context, extra in zip(contexts, evidence, strict=True)
        ],
    )


def right_answers(batch: Batch) -> list[str]:
    """[P] ground-truth answers. Raises where a prompt has none."""
    missing = [i for i, a in enumerate(batch.answer) if a is None]
    if missing:
        raise DataError(
            f"{len(missing)} of {batch.layout.n_prompts} prompts have no ground-truth answer, which evidence methods "
            f"show to the model (first: data row {int(batch.prompt_id[missing[0]])}); map the answer field or use grpo"
        )
    return list(batch.answer)


def wrong_answers(batch: Batch, rejected_below: float = 0.5) -> list[str | None]:
    """[P] final answer of the lowest-scored rejected response of each group that has an extractable answer
    different from the right one; None if there is none. Ties go to the first.

    The authors' code (ahmedheakl/CEPO) takes the lowest-scored rejected response whether or not it has an answer,
    and then shows the literal text "None"; requiring an answer is what its text describes.
    """
    right, extracted = right_answers(batch), batch.extracted
    score = torch.where(batch.scored, batch.score, torch.full_like(batch.score, float("inf"))).tolist()
    owner = batch.layout.seq_prompt.tolist()
    best: list[tuple[float, str] | None] = [None] * batch.layout.n_prompts
    for i, prompt in enumerate(owner):
        answer = extracted[i]
        if answer is None or score[i] >= rejected_below or answer.strip() == right[prompt].strip():
            continue
        current = best[prompt]
        if current is None or score[i] < current[0]:
            best[prompt] = (score[i], answer)
    return [None if b is None else b[1] for b in best]


def informative_prompts(batch: Batch) -> Tensor:
    """[P] bool: prompts with any token of non-zero advantage; evidence about the others would be read by nobody."""
    layout = batch.layout
    return layout.group_sum(layout.seq_sum((batch.advantage != 0).to(torch.int64))) > 0


@dataclass(frozen=True)
class Evidence(Signal):
    """Scores the responses with the right answer appended to the prompt, and (contrastive) with a wrong one.

    Input of the evidence pass: [prompt] + encode(" " + answer) + [response], no words around the answer.
    Prompts without advantage are not scored (both their columns stay equal, evidence of nothing); a prompt
    without a usable wrong answer gets counter = evidence, so that its tokens keep their plain advantage.
    Source: CEPO (arXiv 2605.19436); ahmedheakl/CEPO.
    """

    adds: ClassVar[tuple[str, ...]] = ("evidence_logp", "counter_logp")
    contrastive: bool = True
    strength_until: int | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        base = ("context", "tokens", "trainable", "answer", "extracted", "score", "scored", "advantage")
        return base if self.contrastive else (*base, "old_logp")

    def active(self, batch: Batch) -> bool:
        """False once the credit's strength has decayed to zero at step `strength_until` (None: never)."""
        return self.strength_until is None or batch.step <= self.strength_until

    def _score(self, batch: Batch, scorer: Scorer, prompts: Tensor, texts: list[str], base: Tensor) -> Tensor:
        """[T] log-probs with texts shown, on the tokens of `prompts`; `base` on all other tokens."""
        if not bool(prompts.any()):
            return base
        chosen = batch.take_prompts(prompts)
        pieces = [scorer.encode(" " + text) for text in texts]
        logp = scorer.logp(with_evidence(chosen, pieces), "policy")
        out = base.to(torch.promote_types(base.dtype, logp.dtype), copy=True)
        out[prompts[batch.layout.token_prompt]] = logp.to(out.dtype)
        return out

    def __call__(self, batch: Batch, scorer: Scorer) -> dict[str, Tensor]:
        alive = informative_prompts(batch)
        right = right_answers(batch)
        chosen = [right[i] for i in alive.nonzero().flatten().tolist()]
        if not self.contrastive:
            return {
                "evidence_logp": self._score(batch, scorer, alive, chosen, batch.old_logp),
                "counter_logp": batch.old_logp,
            }
        nothing = torch.zeros(batch.layout.n_tokens, device=batch.tokens.device)
        evidence = self._score(batch, scorer, alive, chosen, nothing)
        wrong = wrong_answers(batch)
        usable = alive & torch.tensor([w is not None for w in wrong], dtype=torch.bool, device=alive.device)
        texts = [w for i in usable.nonzero().flatten().tolist() if (w := wrong[i]) is not None]
        return {"evidence_logp": evidence, "counter_logp": self._score(batch, scorer, usable, texts, evidence)}

    def formula(self) -> str:
        counter = "log pi(y_t | x, r-, y_<t)" if self.contrastive else "log pi_old(y_t | x, y_<t)"
        return f"lp+ = log pi(y_t | x, r+, y_<t),  lp- = {counter}"


DEFAULT_SIGNALS: tuple[Signal, ...] = (OldLogp(), ReferenceLogp(), CurrentLogp())
