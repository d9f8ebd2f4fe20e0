"""Models asked for columns, each rank scoring its share of the sequences."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.policy.model import Policy
from unipo.training.ranks import Ranks


@dataclass
class RankedScorer:
    """A `Scorer` that shares the work and counts it. passes: batches scored; positions: tokens forwarded here."""

    policy: Policy
    ranks: Ranks
    passes: int = 0
    positions: int = 0
    seconds: float = 0.0

    def logp(self, batch: Batch, weights: str = "policy") -> Tensor:
        start = time.perf_counter()
        layout = batch.layout
        costs = (layout.group_sum(layout.seq_lengths) + layout.context_lengths).tolist()
        mine = self.ranks.share(costs)[self.ranks.rank]
        self.passes += 1
        if self.ranks.world == 1:  # not "all are mine": the other ranks would wait for a sum of everyone
            out = self.policy.logp(batch, weights)
            self.positions += layout.n_tokens + layout.n_context
        else:
            out = self._shared(batch, mine, weights)
        self.seconds += time.perf_counter() - start
        return out

    def _shared(self, batch: Batch, mine: list[int], weights: str) -> Tensor:
        chosen = torch.zeros(batch.layout.n_prompts, dtype=torch.bool)
        chosen[mine] = True
        wide = torch.float64 if self.policy.spec.weights == "float64" else torch.float32
        out = torch.zeros(batch.layout.n_tokens, dtype=wide)
        if mine:
            part = batch.take_prompts(chosen)
            out[chosen[batch.layout.token_prompt]] = self.policy.logp(part, weights).to(wide)
            self.positions += part.layout.n_tokens + part.layout.n_context
        return self.ranks.sum_tensor(out)

    def encode(self, text: str) -> list[int]:
        return self.policy.encode(text)
