"""The extra update that a guard asks for: on the batch before, one step, before the usual update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from unipo.batch import Batch
from unipo.method import Method
from unipo.parts.continuous import STEP_COLUMNS
from unipo.parts.part import Scorer
from unipo.policy.model import Policy
from unipo.training.optim import Optimiser
from unipo.training.ranks import Ranks
from unipo.training.update import UpdateReport, run_updates


@dataclass
class Replays:
    """Keeps the batch before for a method's guard, and makes the extra updates. `stored` is its whole state."""

    method: Method
    policy: Policy
    optimiser: Optimiser
    ranks: Ranks
    scorer: Scorer
    stored: Batch | None = None

    def __call__(
        self, batch: Batch, exact: bool, recompute: bool
    ) -> tuple[Batch, UpdateReport | None, dict[str, float]]:
        """(the batch to go on with, report of the extra update if there was one, what the guard tells).

        exact: the sampler's log-probs of this batch are the old policy's.  recompute: those are computed anyway.
        Without an extra update the batch goes on untouched.  After one, the current policy is no longer the one that
        sampled, so the batch takes the old log-probs along.
        """
        guard = self.method.guard
        if guard is None:
            return batch, None, {}
        asked = guard(batch, self.stored)
        told = {"guard/updates": 0.0}
        before, self.stored = self.stored, self._kept(batch, exact)
        if "old_logp" in self.stored.columns and (asked is not None or recompute):
            batch = batch.with_columns(None, old_logp=self.stored.old_logp)
        if asked is None or before is None:
            return batch, None, told
        taken = self.optimiser.taken
        report = run_updates(
            self.method.replay,
            replace(before.with_columns(None, advantage=asked), step=batch.step, total_steps=batch.total_steps),
            *(self.policy, self.optimiser, self.ranks, self.scorer),
            old_logp="stored",
        )
        self.optimiser.taken = taken
        return batch, report, told | {"guard/updates": float(report.steps), **_observed(report)}

    def _kept(self, batch: Batch, exact: bool) -> Batch:
        """What the guard and an extra update read of this batch, the old policy's log-probs among it."""
        guard, replay = self.method.guard, self.method.replay
        assert guard is not None
        needs = {
            "context",
            "tokens",
            "images",
            *STEP_COLUMNS,
            *guard.needs,
            *replay.objective.needs,
            *replay.average.needs,
        }
        if "old_logp" in {*replay.objective.needs, *self.method.needs} and not batch.has("old_logp"):
            logp = batch.behaviour_logp if exact and batch.has("behaviour_logp") else self.scorer.logp(batch)
            batch = batch.with_columns(None, old_logp=logp)
        kept = batch.without(*(set(batch.columns) - needs - {"old_logp"}))
        return replace(kept, states={})


def _observed(report: UpdateReport) -> Mapping[str, float]:
    return {"guard/loss": sum(report.losses.values()), "guard/grad_norm": report.grad_norm}
