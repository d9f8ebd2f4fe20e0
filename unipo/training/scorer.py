"""Models asked for columns, each rank scoring its share of the sequences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.parts.part import Continuations, Measure, Scorer
from unipo.policy.model import Policy
from unipo.policy.value import ValueModel
from unipo.tasks.chat import Chat
from unipo.training.continuations import Continuer
from unipo.training.ranks import Ranks


@dataclass
class RankedScorer(Scorer):
    """A `Scorer` that shares the work and counts it. passes: batches scored; sampled: tokens written to continue
    responses; events: what happened while these were scored."""

    policy: Policy
    ranks: Ranks
    value_model: ValueModel | None = None
    continuer: Continuer | None = None
    passes: int = 0
    sampled: int = 0
    events: Counter[str] = field(default_factory=Counter)
    chat: Chat = "auto"

    def logp(self, batch: Batch, weights: str = "policy") -> Tensor:
        return self._counted(batch, lambda part: self.policy.logp(part, weights))

    def per_place(self, batch: Batch, where: Tensor, measure: Measure) -> Tensor:
        marked = batch.with_columns("token", _where=where)
        return self._counted(marked, lambda part: self.policy.per_place(part, part._where, measure))

    def value(self, batch: Batch) -> Tensor:
        if self.value_model is None:
            raise ConfigError(
                "a part reads `value`, but the method learns no value model: give it value=ValueLearning()"
            )
        return self._counted(batch, self.value_model.values)

    def continued(self, batch: Batch, at: Tensor, n: int) -> Continuations:
        if self.continuer is None:
            raise ConfigError("a part samples on from the middle of responses, but this method samples none")
        drawn, sampled, events = self.continuer(batch, at, n)
        self.sampled += sampled
        self.events.update(events)
        return drawn

    def _counted(self, batch: Batch, score: Callable[[Batch], Tensor]) -> Tensor:
        """[T] what `score` says of the batch, each rank asking it about its share of the prompts."""
        layout = batch.layout
        costs = (layout.group_sum(layout.seq_lengths) + layout.context_lengths).tolist()
        mine = self.ranks.share(costs)[self.ranks.rank]
        self.passes += 1
        if self.ranks.world == 1:  # not "all are mine": the other ranks would wait for a sum of everyone
            return score(batch)
        return self._shared(batch, mine, score)

    def _shared(self, batch: Batch, mine: list[int], score: Callable[[Batch], Tensor]) -> Tensor:
        chosen = torch.zeros(batch.layout.n_prompts, dtype=torch.bool)
        chosen[mine] = True
        wide = torch.float64 if self.policy.spec.weights == "float64" else torch.float32
        out = torch.zeros(batch.layout.n_tokens, dtype=wide)
        if mine:
            part = batch.take_prompts(chosen)
            out[chosen[batch.layout.token_prompt]] = score(part).to(wide)
        return self.ranks.sum_tensor(out)

    def encode(self, text: str) -> list[int]:
        return self.policy.encode(text)

    def prompt(self, prompt: Any) -> list[int]:
        return self.policy.prompt(prompt, self.chat)

    def text(self, tokens: Sequence[int]) -> str:
        return self.policy.text(tokens)

    def black(self) -> Tensor:
        return self.policy.black()
