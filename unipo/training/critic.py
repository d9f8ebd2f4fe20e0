"""The value model's side of an update: its optimiser, its loss on the same minibatches, its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unipo.batch import Batch
from unipo.errors import TrainingError
from unipo.parts.value import ValueLearning
from unipo.policy.value import ValueModel
from unipo.training.config import OptimConfig
from unipo.training.optim import Optimiser
from unipo.training.ranks import Ranks

# A minibatch and the tokens wanted of it -> this rank's pieces, each with its own wanted tokens.
Cut = Callable[[Batch, Tensor], Iterator[tuple[Batch, Tensor]]]


class Critic:
    """A value model that is being learned. A shared one is stepped with the policy and only holds its head here."""

    def __init__(self, model: ValueModel, part: ValueLearning, optim: OptimConfig, total: int, ranks: Ranks) -> None:
        self.model, self.part, self.ranks = model, part, ranks
        own = replace(
            optim,
            learning_rate=part.learning_rate,
            weight_decay=part.weight_decay,
            warmup_steps=part.warmup_steps,
            schedule=part.schedule,
            max_grad_norm=part.max_grad_norm,
        )
        self.optimiser = None if model.shared else Optimiser(own, model.named_parameters(), total)

    def resting(self, step: int) -> bool:
        """Does the policy wait at this step while the value model learns alone?"""
        return step <= self.part.pretrain

    @property
    def policy_head(self) -> nn.Module | None:
        """The head that reads the policy's own hidden states, if this is a shared value model."""
        return self.model.head if self.model.shared else None

    def step(self, minibatch: Batch, cut: Cut, seen: dict[str, float]) -> None:
        """One optimiser step on a minibatch, counted in `seen`; skipped, and counted as that, where nothing is learned."""
        if self.optimiser is None:
            return
        weighed = minibatch.with_columns("token", **{"weight.value": self.part.average.weights(minibatch)})
        required = self.part.active(weighed)
        if not bool(required.any()):
            seen["skipped"] = seen.get("skipped", 0.0) + 1
            return
        self.optimiser.zero()
        for piece, wanted in cut(weighed, required):
            live = piece.with_columns(None, live_value=self.model.live(piece, wanted))
            weight = getattr(piece, "weight.value")
            loss = self.part.coefficient * (self.part(live) * weight).sum()
            if not bool(torch.isfinite(loss)):
                raise TrainingError(
                    f"the value loss is {float(loss)} at update {self.optimiser.taken + 1}; look at the rewards of this step"
                )
            loss.backward()  # type: ignore[no-untyped-call]
            seen["loss"] = seen.get("loss", 0.0) + float(loss.detach())
            seen["forwarded"] = seen.get("forwarded", 0.0) + piece.layout.n_tokens + piece.layout.n_context
        self.ranks.sum_gradients([p for _, p in self.optimiser.named])
        seen["learning_rate"] = self.optimiser.rate
        seen["grad_norm"] = self.optimiser.step()

    # -- state ---------------------------------------------------------------------------------------
    def state(self) -> dict[str, Any] | None:
        """What beside the weights must survive."""
        return None if self.optimiser is None else self.optimiser.state()

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint's state of the optimiser."""
        if self.optimiser is not None and state is not None:
            self.optimiser.load(state)
