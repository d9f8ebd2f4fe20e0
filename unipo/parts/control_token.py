"""A first token that announces how the answer will be written: its own denominator, and rewards by mode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.parts.average import Average, counted
from unipo.parts.part import Shaping


@dataclass(frozen=True)
class ControlSplit(Average):
    """The first token of each response and the rest are averaged apart: L = alpha mean_control l + mean_rest l.

        rest="batch" (code):     weight_i0 = alpha / (counted first tokens),  weight_it = 1 / (counted other tokens)
        rest="sequence" (paper): weight_i0 = alpha / N,                       weight_it = 1 / (N T_i)
    N: responses with a counted token; T_i: counted tokens after the first.  A single token thus weighs the same
    however long the answer that follows; in a mean over all tokens it weighs 1/T.  Position 0 is the control token
    whatever stands there.  A response of one token has no second part.
    Source: DeGRPO in Thinkless (arXiv 2505.13379); VainF/Thinkless.  Code and paper differ as above.
    """

    source = "Thinkless (arXiv 2505.13379); VainF/Thinkless: verl core_algos.py"
    alpha: float = 1e-3
    rest: str = "batch"

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.rest not in ("batch", "sequence"):
            raise ConfigError(f"ControlSplit needs alpha >= 0 and rest 'batch' or 'sequence', got {self}")

    def token_weights(self, batch: Batch) -> Tensor:
        layout = batch.layout
        first = counted(batch.mask & (layout.token_position == 0))
        rest = counted(batch.mask & (layout.token_position > 0))
        if self.rest == "batch":
            return self.alpha * first / first.sum().clamp(min=1) + rest / rest.sum().clamp(min=1)
        n = (layout.seq_count(batch.mask) > 0).sum().clamp(min=1)
        lengths = layout.to_tokens(layout.seq_sum(rest).clamp(min=1))
        return (self.alpha * first + rest / lengths) / n

    def formula(self) -> str:
        if self.rest == "batch":
            return f"L = {self.alpha:g} mean_i l_i0 + mean over all (i, t > 0) of l_it"
        return f"L = (1/N) sum_i [{self.alpha:g} l_i0 + (1/T_i) sum_(t>0) l_it]"


@dataclass(frozen=True)
class ModeReward(Shaping):
    """A right answer earns 1 in the short mode and 1 - gamma in the long one; everything else earns -1.

    The mode is the tag that comes first in the response; `anywhere`: as the official code's substring tests,
    otherwise the response must begin with it.  Right: the task's own score reaches `right`.  A response without
    a tag earns -1.  Wrong answers earn the same in both modes, so only right ones make a preference.
    Source: Thinkless (arXiv 2505.13379), eq. (4); VainF/Thinkless.
    """

    source = "Thinkless (arXiv 2505.13379); VainF/Thinkless"
    gamma: float = 0.5
    short: str = "<short>"
    long: str = "<think>"
    right: float = 1.0
    anywhere: bool = True

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "score", "scored", "text")

    def mode(self, text: str) -> str | None:
        """'short', 'long' or None."""
        found = {name: text.find(tag) for name, tag in (("short", self.short), ("long", self.long))}
        if not self.anywhere:
            found = {name: at for name, at in found.items() if at == 0}
        places = {at: name for name, at in found.items() if at >= 0}
        return places[min(places)] if places else None

    def __call__(self, batch: Batch) -> Tensor:
        worth = {"short": 1.0, "long": 1.0 - self.gamma, None: -1.0}
        if_right = torch.tensor([worth[self.mode(t)] for t in batch.text], dtype=torch.float64)
        right = batch.scored & (batch.score >= self.right)
        value = torch.where(right, if_right.to(batch.reward.device), -1.0)
        return torch.where(batch.scored, value.to(batch.reward.dtype), batch.reward)

    def formula(self) -> str:
        return f"R_i = 1 if right and {self.short}, {1 - self.gamma:g} if right and {self.long}, else -1"
