"""Denominators are objects: who is averaged over what, counted once over the whole update batch.

An average gives every unit its weight, so that loss = sum_u weight_u * loss_u.  The weights are computed on
the whole update batch before it is cut into micro-batches or shared between ranks; a sum of weighted losses
does not change with the cut.  Units are tokens, sequences or prompts, as the objective says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.parts.part import Part


@dataclass(frozen=True)
class Average(Part):
    """Base: defines token weights; the weight of a sequence is the sum over its tokens."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("mask",)

    def weights(self, batch: Batch, level: str = "token") -> Tensor:
        """[units] float64 weights. Raises where this average has no meaning at that level."""
        weight_t = self.token_weights(batch)
        if level == "token":
            return weight_t
        if level == "sequence":
            return batch.layout.seq_sum(weight_t)
        raise ConfigError(f"{type(self).__name__} does not weigh whole prompts; use GroupMean()")

    def token_weights(self, batch: Batch) -> Tensor:
        """[T] float64 weight of every token; 0 off the mask."""
        raise NotImplementedError

    @property
    def unwrapped(self) -> Average:
        """The average inside one that only chooses rows; itself for the others."""
        return self


def counted(mask: Tensor) -> Tensor:
    """A bool mask as float64 ones and zeros, to be summed."""
    return mask.to(torch.float64)


@dataclass(frozen=True)
class TokenMean(Average):
    """Every counted token of the update batch weighs the same: long responses weigh more.

        weight_t = 1 / (number of counted tokens)
    Source: DAPO (arXiv 2503.14476), eq. (8).
    """

    source = "DAPO (arXiv 2503.14476), token-level loss"

    def token_weights(self, batch: Batch) -> Tensor:
        m_t = counted(batch.mask)
        return m_t / m_t.sum().clamp(min=1)

    def formula(self) -> str:
        return "L = sum_{i,t} m_it l_it / sum_{i,t} m_it"


@dataclass(frozen=True)
class SequenceMean(Average):
    """Mean over the tokens of each response, then over responses: every response weighs the same.

        weight_it = 1 / (N T_i),  T_i = counted tokens of response i
    N is the number of responses with at least one counted token (`count="nonempty"`, as verl), or of all
    responses of the batch (`count="all"`: TRL's "grpo", where a masked response still takes its share).
    Source: GRPO (arXiv 2402.03300), eq. (3).
    """

    source = "DeepSeekMath (arXiv 2402.03300), eq. (3)"
    count: str = "nonempty"

    def __post_init__(self) -> None:
        if self.count not in ("nonempty", "all"):
            raise ConfigError(f"SequenceMean.count is 'nonempty' or 'all', got {self.count!r}")

    def token_weights(self, batch: Batch) -> Tensor:
        layout, m_t = batch.layout, counted(batch.mask)
        per_seq = layout.seq_sum(m_t)
        n = (per_seq > 0).sum() if self.count == "nonempty" else torch.tensor(layout.n_sequences)
        return m_t / layout.to_tokens(per_seq.clamp(min=1)) / n.clamp(min=1)

    def formula(self) -> str:
        return "L = (1/N) sum_i (1/T_i) sum_t m_it l_it"


@dataclass(frozen=True)
class SequenceSum(Average):
    """Sum over the tokens of each response, mean over responses: the response is one action.

        weight_it = 1 / N,  N = responses with at least one counted token
    Source: REINFORCE as in "Back to Basics" (arXiv 2402.14740), sec. 3.
    """

    source = "Back to Basics (arXiv 2402.14740), sec. 3"

    def token_weights(self, batch: Batch) -> Tensor:
        m_t = counted(batch.mask)
        n = (batch.layout.seq_sum(m_t) > 0).sum().clamp(min=1)
        return m_t / n

    def formula(self) -> str:
        return "L = (1/N) sum_i sum_t m_it l_it"


@dataclass(frozen=True)
class ConstantNormaliser(Average):
    """Sum over tokens divided by a constant length: no length bias, and no dependence on this batch's lengths.

        weight_it = 1 / (N C)
    C is `length`, or the generation budget of the run when it is 0 (the authors' code uses the maximum
    generation length; which C applies when the context window differs is left open there).  N counts the
    responses with at least one counted token.
    Source: Dr. GRPO (arXiv 2503.20783), sec. 3.2; code sail-sg/understand-r1-zero.
    """

    source = "Dr. GRPO (arXiv 2503.20783); sail-sg/understand-r1-zero"
    length: int = 0

    def token_weights(self, batch: Batch) -> Tensor:
        if self.length <= 0:
            raise ConfigError("ConstantNormaliser: set length, or let the run fill in its token budget")
        m_t = counted(batch.mask)
        n = (batch.layout.seq_sum(m_t) > 0).sum().clamp(min=1)
        return m_t / (n * self.length)

    def bound_to(self, max_tokens: int) -> Self:
        return self if self.length else replace(self, length=max_tokens)

    def formula(self) -> str:
        return f"L = (1/N) sum_i (1/{self.length or 'max_tokens'}) sum_t m_it l_it"


@dataclass(frozen=True)
class ConstantSum(ConstantNormaliser):
    """Sum over all tokens of the update batch, divided by a constant length alone: larger batches have larger losses.

        weight_it = 1 / C
    C is `length`, or the generation budget of the run when it is 0.
    Source: HPT (arXiv 2509.04419) as released, TsinghuaC3I/Unify-Post-Training, which sums over each micro-batch
    and so depends on how the batch is cut; here it is the whole update batch.
    """

    source = "TsinghuaC3I/Unify-Post-Training (HPT, arXiv 2509.04419)"

    def token_weights(self, batch: Batch) -> Tensor:
        if self.length <= 0:
            raise ConfigError("ConstantSum: set length, or let the run fill in its token budget")
        return counted(batch.mask) / self.length

    def formula(self) -> str:
        return f"L = (1/{self.length or 'max_tokens'}) sum_i sum_t m_it l_it"


@dataclass(frozen=True)
class GroupMean(Average):
    """Every prompt (pair, list) weighs the same. Only for objectives whose unit is the prompt.

    weight_p = 1 / P,  P = prompts with at least one counted token (`count="nonempty"`), or all prompts of the
    minibatch (`count="all"`: one that is left out still takes its share).
    """

    source = "DPO (arXiv 2305.18290), eq. (7): expectation over pairs"
    count: str = "nonempty"

    def __post_init__(self) -> None:
        if self.count not in ("nonempty", "all"):
            raise ConfigError(f"GroupMean.count is 'nonempty' or 'all', got {self.count!r}")

    def weights(self, batch: Batch, level: str = "token") -> Tensor:
        if level != "prompt":
            raise ConfigError("GroupMean weighs whole prompts; use TokenMean or SequenceMean for smaller units")
        layout = batch.layout
        has = layout.group_sum(layout.seq_sum(counted(batch.mask))) > 0
        n = has.sum() if self.count == "nonempty" else torch.tensor(layout.n_prompts)
        return counted(has) / n.clamp(min=1)

    def formula(self) -> str:
        return "L = (1/P) sum_p l_p" + ("" if self.count == "nonempty" else ",  P = all prompts")
