"""Guards: what looks at an update after it was made, and answers with another one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.part import Objective, Part


@dataclass(frozen=True)
class Guard(Part):
    """Watches the update batches, and may ask for an extra update on the one before, with other advantages.

    The extra update comes before the usual one, on the weights that sampled `batch`.  Its loss is `objective` (None:
    the method's own) under the method's average, without regularisers and extra terms; its ratio is against the
    policy that sampled the stored batch.  The loop stores every judged batch until the next, and saves it in
    checkpoints; what else a guard must know is its `remember`ed memory.
    """

    @property
    def objective(self) -> Objective | None:
        """The loss of the extra update; None where there is none."""
        return None

    def __call__(self, batch: Batch, stored: Batch | None) -> Tensor | None:
        """[T of `stored`] advantages of the extra update, or None for none. stored: the judged batch before."""
        raise NotImplementedError


def improvement(
    value: float, history: Sequence[float], unbiased: bool = True, largest_gap: float = math.inf
) -> tuple[float, float]:
    """(value - mean of the history, bounded on both sides; standard deviation of the history).

    Their quotient xi does not change under affine changes with positive slope; the deviation is exactly 0 where all
    numbers are equal.
    Source: PIPO (arXiv 2604.00860), step 2 of its algorithm; sample standard deviation (`unbiased`) in the paper,
    population in JacckMa/pipo_verl: verl/trainer/ppo/layback_utils.py.
    """
    constant = max(history) == min(history)
    # A mean of equal numbers is off by rounding, and under Adam the smallest difference is a whole step.
    mean = history[0] if constant else math.fsum(history) / len(history)
    gap = max(-largest_gap, min(largest_gap, value - mean))
    if constant:
        return gap, 0.0
    squares = math.fsum((x - mean) ** 2 for x in history)
    return gap, math.sqrt(squares / (len(history) - unbiased))


def group_share(advantage: Tensor, layout: Layout, counted: Tensor) -> Tensor:
    """a_i = G A_i / sum_{j in group} |A_j|, so that sum_i |a_i| = G; 0 in a group without any advantage.

    advantage: [S], any scale; counted: [S] bool, members that count (G of them).  Returns [S], unitless.
    Source: PIPO (arXiv 2604.00860), attribution; its code adds 1e-6 to the sum instead of defining 0/0.
    """
    held = torch.where(counted, advantage, torch.zeros_like(advantage))
    total = layout.to_sequences(layout.group_sum(held.abs()))
    size = layout.to_sequences(layout.group_count(counted)).to(held.dtype)
    return torch.where(total > 0, size * held / torch.where(total > 0, total, torch.ones_like(total)), 0.0)


@dataclass(frozen=True)
class ImprovementGate(Guard):
    """Repeat the last update if the fresh batch is better than the recent past, take a little of it back if worse.

        xi = (mu_t - mean(window)) / std(window),  phi = xi if xi >= 0 else backward * xi
        extra update on the batch before, with A_i <- phi * G A_i / sum_{j in group} |A_j|

    mu: mean reward of everything sampled for a batch, dropped prompts included.  window: that of so many batches
    before this one; nothing happens until it is full, nor when it has no spread.  attribution: 'group' as above, or
    'plain' for A_i itself (the paper's choice over a critic).  A credit inside a response is kept: every token's
    advantage is scaled by its response's factor.  The extra update is one optimiser step on the whole stored batch,
    at the learning rate of the next usual step, whose place in the schedule it does not take.
    Differences of the released code, as settings: inclusive=True puts mu_t into its own window, twice, so that a
    window of 8 holds 4 batches, starts at once, and divides by the population's deviation (1 if there is none);
    largest_gap=5 bounds mu_t - mean, largest_push=10 bounds phi's |a xi| (before `backward`, which there scales the
    loss); objective=CappedSurrogate(cap=1.2) bounds the ratio from above whatever the advantage's sign.
    Source: PIPO (arXiv 2604.00860); JacckMa/pipo_verl: verl/trainer/ppo/layback_utils.py.
    Unsure: on a plateau xi is mostly noise; which version of the code made the tables.
    """

    source = "PIPO (arXiv 2604.00860); JacckMa/pipo_verl: layback_utils.py"
    window: int = 8
    backward: float = 0.1
    attribution: str = "group"
    inclusive: bool = False
    largest_gap: float | None = None
    largest_push: float | None = None
    objective: Objective | None = None

    def __post_init__(self) -> None:
        if self.window < 2 or not 0 <= self.backward <= 1:
            raise ConfigError(f"ImprovementGate needs window >= 2 and 0 <= backward <= 1, got {self}")
        if self.attribution not in ("group", "plain"):
            raise ConfigError(f"ImprovementGate.attribution is 'group' or 'plain', got {self.attribution!r}")
        if any(x is not None and x <= 0 for x in (self.largest_gap, self.largest_push)):
            raise ConfigError(f"ImprovementGate: bounds must be positive (or None for no bound), got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        base = ("reward", "scored", "advantage", "mask")
        return (*base, "sequence_advantage") if self.attribution == "group" else base

    @property
    def state_key(self) -> str:
        return "improvement_gate"

    def _window(self, batch: Batch) -> list[float]:
        return [float(x) for x in batch.states.get(self.state_key, {}).get("window", [])]

    def improvement(self, batch: Batch) -> float | None:
        """xi of this batch; None while the window is not full, has no spread, or nothing was scored."""
        mu, known = batch.sampled_reward, self._window(batch)
        if mu is None or (len(known) < self.window and not self.inclusive):
            return None
        known = [*known, mu][-self.window :] if self.inclusive else known
        gap, deviation = improvement(mu, known, not self.inclusive, self.largest_gap or math.inf)
        if self.inclusive and deviation < 1e-8:
            deviation = 1.0
        return gap / deviation if deviation else None

    def __call__(self, batch: Batch, stored: Batch | None) -> Tensor | None:
        xi = self.improvement(batch)
        if stored is None or not xi:
            return None
        scale = 1.0 if xi > 0 else self.backward
        if scale == 0:
            return None
        share = torch.ones(stored.layout.n_sequences, dtype=torch.float64, device=stored.layout.device)
        if self.attribution == "group":
            whole = stored.sequence_advantage.to(torch.float64)
            part = group_share(whole, stored.layout, stored.scored)
            share = torch.where(part != 0, part / torch.where(part != 0, whole, torch.ones_like(whole)), 0.0)
        push = stored.advantage * stored.layout.to_tokens(share).to(stored.advantage.dtype) * xi
        if self.largest_push is not None:
            push = push.clamp(-self.largest_push, self.largest_push)
        return torch.where(stored.mask, scale * push, torch.zeros_like(push))

    def measure(self, batch: Batch) -> Mapping[str, float]:
        xi = self.improvement(batch)
        return {} if xi is None else {"guard/improvement": xi}

    def remember(self, batch: Batch) -> Mapping[str, Any]:
        mu = batch.sampled_reward
        fresh = [] if mu is None else [mu, mu] if self.inclusive else [mu]
        return {"window": [*self._window(batch), *fresh][-self.window :]}

    def formula(self) -> str:
        history = (
            f"last {self.window} means, this one in them" if self.inclusive else f"last {self.window} mean rewards"
        )
        a = "G A_i / sum_g |A_j|" if self.attribution == "group" else "A_i"
        gap = "" if self.largest_gap is None else f", gap within {self.largest_gap:g}"
        bound = "" if self.largest_push is None else f", |xi a_i| <= {self.largest_push:g}"
        loss = "" if self.objective is None else f", {self.objective.formula()}"
        return (
            f"before the update, one on the batch before with A_i <- phi {a}{loss};  phi = xi if xi >= 0 else "
            f"{self.backward:g} xi,  xi = (mean(R) - mean)/std of the {history}{gap}{bound}"
        )
