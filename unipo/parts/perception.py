"""Reward the policy for reading its prompt: it should differ from what it says when part of the prompt is destroyed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.chance import mix, uniform
from unipo.errors import ConfigError, DataError
from unipo.parts.part import LOG_RATIO_LIMIT, Regulariser, Scorer, Signal
from unipo.signals import with_contexts


def corrupted_context(
    context: Tensor, inside: Tensor, prompt: Tensor, place: Tensor, step: int, share: float, fill: int
) -> Tensor:
    """[C] context ids in which each position of `inside` has been replaced by `fill` with probability `share`.

    context: [C] ids; inside: [C] bool; prompt: [C] id of each position's prompt; place: [C] position in its prompt.
    The draw depends on prompt, place and step alone, so a group shares it and no cut of the batch changes it.
    """
    chance = uniform(mix(mix(prompt) + step), place)
    return torch.where(inside & (chance < share), torch.full_like(context, fill), context)


def blacked_out(images: Tensor, prompt: int, step: int, share: float, patch: int, black: Tensor) -> Tensor:
    """Images with squares of `patch` pixels made black, each independently with probability `share`.

    images: [n, C, H, W]; black: [C].  Squares are counted from the upper left; those at the right and lower edge may be
    narrower.  The draw depends on prompt, step and the square's number alone.  Returns a new tensor.
    Source: PAPO (arXiv 2507.06448); MikeWangWZHL/PAPO: papo_utils.py (random_patch_blackening).
    """
    n, _, height, width = images.shape
    rows, columns = -(-height // patch), -(-width // patch)
    seed = mix(mix(torch.tensor(prompt)) + step).expand(n * rows * columns)
    chance = uniform(seed, torch.arange(n * rows * columns)).view(n, 1, rows, columns)
    hidden = (chance < share).to(images.device)
    hidden = hidden.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[:, :, :height, :width]
    return torch.where(hidden, black.to(images)[None, :, None, None], images)


def spans(context: list[int], opening: list[int], closing: list[int]) -> list[bool]:
    """Which positions lie between a marker and the next other one. An unclosed span runs to the end."""
    found, at, inside = [False] * len(context), 0, False
    while at < len(context):
        marker = closing if inside else opening
        if context[at : at + len(marker)] == marker:
            inside, at = not inside, at + len(marker)
            continue
        found[at] = inside
        at += 1
    return found


@dataclass(frozen=True)
class CorruptedContext(Signal):
    """Log-probs of the same responses after the same prompt with part of it destroyed.

    Where prompts come with images (`images`), squares of the images are blacked out and the text stays; a prompt without
    an image is skipped.  Otherwise tokens of the prompt are replaced.
    share: probability with which each square or token is destroyed.  patch: side of a square, in pixels as the model is
    shown them.  fill: text whose first token replaces a token.  opening, closing: texts around what may be destroyed (a
    passage, a picture in words, a tool's output); without them, the whole prompt.
    Columns: `corrupted_logp` and `corrupted` (bool: something of this token's prompt could be destroyed; the others are
    not scored and take no part).  One pass without gradient by the policy that sampled, one draw per prompt and step.
    Source: PAPO (arXiv 2507.06448), MikeWangWZHL/PAPO.  The code blacks out before the processor scales an image to the
    model's size, this after it: the same where nothing is scaled.
    """

    source = "PAPO (arXiv 2507.06448), sec. 3; MikeWangWZHL/PAPO"
    adds: ClassVar[tuple[str, ...]] = ("corrupted_logp", "corrupted")
    share: float = 0.6
    fill: str = " "
    opening: str = ""
    closing: str = ""
    patch: int = 14

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or bool(self.opening) != bool(self.closing) or self.patch < 1:
            raise ConfigError(
                f"CorruptedContext: 0 <= share <= 1, patch >= 1, opening and closing both or neither; got {self}"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        return ("context", "tokens", "trainable", "prompt_id")

    def inside(self, batch: Batch, scorer: Scorer) -> Tensor:
        """[C] bool: context positions that may be destroyed."""
        if not self.opening:
            return torch.ones_like(batch.context, dtype=torch.bool)
        opening, closing = scorer.encode(self.opening), scorer.encode(self.closing)
        found: list[bool] = []
        for context in batch.context.split(batch.layout.context_lengths.tolist()):
            found += spans(context.tolist(), opening, closing)
        return torch.tensor(found, dtype=torch.bool, device=batch.context.device)

    def __call__(self, batch: Batch, scorer: Scorer) -> dict[str, Tensor]:
        return self._unseen(batch, scorer) if batch.has("images") else self._unread(batch, scorer)

    def _unseen(self, batch: Batch, scorer: Scorer) -> dict[str, Tensor]:
        """With squares of the images blacked out."""
        layout = batch.layout
        usable = torch.tensor([len(x) > 0 for x in batch.images], dtype=torch.bool, device=layout.device)
        corrupted = layout.to_tokens(layout.to_sequences(usable))
        logp = torch.zeros(layout.n_tokens, device=batch.tokens.device)
        if bool(usable.any()):
            chosen = batch.take_prompts(usable)
            black = scorer.black()
            pairs = zip(chosen.images, chosen.prompt_id.tolist(), strict=True)
            images = [blacked_out(x, p, batch.step, self.share, self.patch, black) for x, p in pairs]
            found = scorer.logp(chosen.with_columns(None, images=images), "policy")
            logp = logp.to(found.dtype)
            logp[corrupted] = found
        return {"corrupted_logp": logp, "corrupted": corrupted}

    def _unread(self, batch: Batch, scorer: Scorer) -> dict[str, Tensor]:
        """With tokens of the prompt replaced."""
        layout = batch.layout
        fill = scorer.encode(self.fill)
        if not fill:
            raise DataError(f"CorruptedContext.fill {self.fill!r} is no token of this model: name another text")
        owner = torch.repeat_interleave(torch.arange(layout.n_prompts, device=layout.device), layout.context_lengths)
        place = torch.arange(layout.n_context, device=layout.device) - layout.context_starts[owner]
        inside = self.inside(batch, scorer)
        usable = torch.zeros(layout.n_prompts, dtype=torch.int64, device=layout.device)
        usable = usable.index_add(0, owner, inside.to(torch.int64)) > 0
        corrupted = layout.to_tokens(layout.to_sequences(usable))
        logp = torch.zeros(layout.n_tokens, device=batch.tokens.device)
        if bool(usable.any()):
            context = corrupted_context(
                batch.context, inside, batch.prompt_id[owner], place, batch.step, self.share, fill[0]
            )
            pieces = context.split(layout.context_lengths.tolist())
            chosen = batch.take_prompts(usable)
            kept = [piece for piece, use in zip(pieces, usable.tolist(), strict=True) if use]
            found = scorer.logp(with_contexts(chosen, kept), "policy")
            logp = logp.to(found.dtype)
            logp[corrupted] = found
        return {"corrupted_logp": logp, "corrupted": corrupted}

    def formula(self) -> str:
        where = f"between {self.opening!r} and {self.closing!r}" if self.opening else "of the prompt"
        return (
            f"la = log pi_old(y_t | x', y_<t), x': each token {where} replaced (of images: each {self.patch}x{self.patch} "
            f"square blacked out) with probability {self.share:g}"
        )


def perception_kl(logp: Tensor, corrupted_logp: Tensor, mask: Tensor, limit: float) -> Tensor:
    """min(exp(d) - d - 1, limit) with d = la - logp. logp, corrupted_logp: [T]; mask: [T] bool. Returns [T] nats.

    Its gradient by logp is 1 - exp(d), 0 beyond the limit: positive where the prompt helps the sampled token.
    Expected on-policy this is the gradient of KL(pi_corrupted || pi).
    Source: PAPO (arXiv 2507.06448); MikeWangWZHL/PAPO (k3, clamped).
    """
    d = torch.where(mask, corrupted_logp - logp, torch.zeros_like(logp)).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return (torch.expm1(d) - d).clamp(max=limit)


@dataclass(frozen=True)
class Perception(Regulariser):
    """Minus gamma times a KL estimate against the policy that cannot see: the implicit perception loss.

    limit: no token counts for more than this many nats, and beyond it gives no gradient.
    Unbounded above without the limit, which is the way it is hacked: 0.04 collapsed in the paper.
    Unsure: whether published runs ever gave the corrupted pass a gradient (here it has none, as released).
    Source: PAPO (arXiv 2507.06448); MikeWangWZHL/PAPO.
    """

    source = "PAPO (arXiv 2507.06448); MikeWangWZHL/PAPO"
    gamma: float = 0.02
    limit: float = 10.0
    context: CorruptedContext = CorruptedContext()

    def __post_init__(self) -> None:
        if self.gamma < 0 or self.limit <= 0:
            raise ConfigError(f"Perception: gamma >= 0 and limit > 0, got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logp", "corrupted_logp", "corrupted", "mask") if self.gamma else ()

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (self.context,) if self.gamma else ()

    @property
    def coefficient(self) -> float:
        return self.gamma

    def active(self, batch: Batch) -> Tensor:
        seen: Tensor = batch.mask & batch.corrupted
        return seen

    def __call__(self, batch: Batch) -> Tensor:
        return -perception_kl(batch.logp, batch.corrupted_logp, batch.mask & batch.corrupted, self.limit)

    def formula(self) -> str:
        return f"- {self.gamma:g} * min(exp(d) - d - 1, {self.limit:g}),  d = la_it - log pi(y_it)"


@dataclass(frozen=True)
class SampledEntropy(Regulariser):
    """eta times minus the sampled token's log-prob: the half of PAPO's double entropy loss that has a gradient.

    Lowers the entropy. On-policy its expected gradient is 0: it acts through later updates of a batch and finite
    samples.  The other half, of the corrupted pass, is a constant in the released code and is left out here; the
    switch that gives it a gradient is not built.
    Source: PAPO (arXiv 2507.06448); MikeWangWZHL/PAPO.
    """

    source = "PAPO (arXiv 2507.06448); MikeWangWZHL/PAPO"
    eta: float = 0.03

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logp", "mask") if self.eta else ()

    @property
    def coefficient(self) -> float:
        return self.eta

    def __call__(self, batch: Batch) -> Tensor:
        return -torch.where(batch.mask, batch.logp, torch.zeros_like(batch.logp))

    def formula(self) -> str:
        return f"+ {self.eta:g} * (- log pi(y_it))"
