"""Sampled responses and demonstrations in one batch: which rows a term is about, and who learns from what."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.average import Average, TokenMean
from unipo.parts.part import Selection

ROWS = ("sampled", "demonstration")


@dataclass(frozen=True)
class OnRows(Average):
    """Another average over one kind of rows only: sampled responses, or demonstrations.

    The others weigh 0 and stand in no denominator, so a term's size does not depend on how many of them there are.
    """

    source = "HPT (arXiv 2509.04419): each loss over its own rows"
    average: Average = TokenMean()
    rows: str = "sampled"

    def __post_init__(self) -> None:
        if self.rows not in ROWS:
            raise ConfigError(f"OnRows.rows is {' or '.join(ROWS)}, got {self.rows!r}")

    @property
    def needs(self) -> tuple[str, ...]:
        return (*self.average.needs, "demonstration")

    @property
    def unwrapped(self) -> Average:
        return self.average.unwrapped

    def bound_to(self, max_tokens: int) -> Self:
        return replace(self, average=self.average.bound_to(max_tokens))

    def weights(self, batch: Batch, level: str = "token") -> Tensor:
        own = batch.demonstration == (self.rows == "demonstration")
        return self.average.weights(batch.with_columns(None, mask=batch.mask & batch.layout.to_tokens(own)), level)

    def formula(self) -> str:
        return f"{self.average.formula()},  i over {self.rows} rows"


def right_answers_of(score: Tensor, layout: Layout, counted: Tensor, right: float) -> Tensor:
    """[P] int64: how many members that count have a score of at least `right`. score: [S], counted: [S] bool."""
    return layout.group_sum((counted & (score >= right)).to(torch.int64))


@dataclass(frozen=True)
class DemonstrationGate(Selection):
    """A prompt learns from its demonstration while at most `most` sampled responses are right, else from them.

        k = #{i: v_i >= right};   k <= most: the demonstration alone;   k > most: the sampled responses alone

    A prompt at or below the gate that has no demonstration leaves the update, as does one of which nothing was
    scored.  most = -1 keeps the sampled responses everywhere, most = group size the demonstrations.
    The paper's gate is on the rate: P <= gamma with P = k/n.
    Source: HPT (arXiv 2509.04419), Algorithm 1; TsinghuaC3I/Unify-Post-Training (switch_gate): 0 for Qwen2.5-Math,
    2 for Llama-3.1-8B, of 8 responses.
    """

    source = "HPT (arXiv 2509.04419), Algorithm 1; TsinghuaC3I/Unify-Post-Training"
    level: ClassVar[str] = "sequence"
    most: int = 0
    right: float = 1.0

    def __post_init__(self) -> None:
        if self.most < -1:
            raise ConfigError(f"DemonstrationGate.most counts right responses, -1 or more; got {self.most}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("score", "scored", "demonstration")

    def __call__(self, batch: Batch) -> Tensor:
        layout, sampled = batch.layout, batch.scored & ~batch.demonstration
        failed = right_answers_of(batch.score, layout, sampled, self.right) <= self.most
        known = layout.group_count(sampled) > 0
        keep: Tensor = batch.demonstration == layout.to_sequences(failed)
        return keep & layout.to_sequences(known)

    def formula(self) -> str:
        return f"keep y* alone if #{{v_i >= {self.right:g}}} <= {self.most}, else y_1..y_n alone"
