"""The one loop: source -> reward -> selection -> signals -> advantage -> credit -> updates -> weights to the engine.

What differs between methods is in their parts; what must survive a kill is in `Trainer.state`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import DataError, TrainingError
from unipo.judge import judge, remember
from unipo.parts.asynchronous import may_start
from unipo.parts.selection import DynamicSampling
from unipo.parts.source import Source
from unipo.policy.tape import Tape
from unipo.rollout.local import LocalEngine
from unipo.training.config import TrainConfig
from unipo.training.metrics import batch_metrics, update_metrics
from unipo.training.optim import Optimiser
from unipo.training.prompts import PromptStream
from unipo.training.ranks import Ranks
from unipo.training.scorer import RankedScorer
from unipo.training.setup import Setup
from unipo.training.source import Collected, Reader, Sampler
from unipo.training.update import UpdateReport, run_updates


class Trainer:
    """Holds the moving state of a run and makes steps. It knows nothing of files or displays."""

    def __init__(self, setup: Setup, ranks: Ranks | None = None) -> None:
        self.setup, self.ranks = setup, ranks or Ranks()
        self.config: TrainConfig = setup.config
        self.method = setup.method
        self.policy = setup.policy
        self.scorer = RankedScorer(self.policy, self.ranks)
        self.stream = PromptStream(setup.train, self.config.seed)
        total = self.config.steps * self.method.source.updates
        self.optimiser = Optimiser(self.config.optim, self.policy.named_parameters(), total)
        self.states: dict[str, Any] = {}
        self.surplus: Batch | None = None
        self.waiting: list[Collected | None] = []  # sampled ahead, oldest first
        self.sampled = 0  # batches sampled so far by an asynchronous source
        self.step_number = 0
        self.source: Sampler | Reader = Reader(self.method)
        if self.method.online:
            if setup.reward is None:
                raise TrainingError(f"{self.method.name} samples responses but there is no reward")
            self.source = Sampler(
                self.policy,
                setup.engine,
                setup.reward,
                self.method,
                self.config.sampling,
                self.config.seed,
                self.ranks,
            )
        self.old_logp = _old_logp_plan(self.config, self.method.source, setup, self.method.needs)

    # -- one step --------------------------------------------------------------------------------
    def step(self, progress: Callable[[int], None] | None = None) -> tuple[dict[str, float], Batch | None]:
        """Sample (or read), judge and update once. Returns (metrics, judged batch, None if nothing qualified)."""
        start = time.perf_counter()
        self.step_number += 1
        self.scorer.passes = 0
        tape = self._record()
        collected = self.collect(progress)
        self._stop_recording()
        if collected is None:
            return {"events/no_prompt_qualified": 1.0, "updates/skipped": 1.0}, None
        batch = replace(
            collected.batch, step=self.step_number, total_steps=max(1, self.config.steps), states=self.states
        )
        raw: Tensor | None = batch.reward if batch.has("reward") else None
        if self.old_logp == "behaviour" and "old_logp" in self.method.needs and batch.has("behaviour_logp"):
            batch = batch.with_columns(None, old_logp=batch.behaviour_logp)
        batch = judge(self.method, batch, self.scorer)
        report = self._update(batch, tape)
        self.states = dict(remember(self.method, batch).states)
        metrics = batch_metrics(collected, batch, self.method, raw) | update_metrics(report)
        metrics["passes/extra"] = float(self.scorer.passes)
        metrics["epoch"] = self.stream.epoch
        metrics |= self._warnings(metrics)
        metrics |= self._speed(collected, report, time.perf_counter() - start)
        return metrics, batch

    def _update(self, batch: Batch, tape: Tape | None) -> UpdateReport:
        return run_updates(
            self.method, batch, self.policy, self.optimiser, self.ranks, self.scorer, self.old_logp, tape
        )

    def _record(self) -> Tape | None:
        """Have the local engine keep what it computes, where a single update by the same process will read it."""
        engine, source = self.setup.engine, self.method.source
        if self.ranks.world > 1 or source.updates > 1 or source.ahead or not isinstance(engine, LocalEngine):
            return None
        engine.tape = self.policy.make_tape() if self.method.online else None
        return engine.tape

    def _stop_recording(self) -> None:
        """Evaluation is not trained on, and prompts kept for a later step are read under other weights then."""
        if isinstance(self.setup.engine, LocalEngine):
            self.setup.engine.tape = None
        if self.surplus is not None:
            self.surplus = self.surplus.with_columns(None, taped=torch.full_like(self.surplus.taped, -1))

    # -- collecting ------------------------------------------------------------------------------
    def collect(self, progress: Callable[[int], None] | None = None) -> Collected | None:
        """The batch of this step: fresh, or the oldest of those that an asynchronous source has sampled ahead."""
        source, size = self.method.source, self.config.prompts
        if not source.ahead:
            return with_lag(self._fresh(progress), source, self.policy.updates)
        trained = max(0, self.step_number - 1)
        while not self.waiting or may_start(self.sampled * size, 0, trained, size, source.ahead):
            self.waiting.append(self._fresh(progress))
            self.sampled += 1
        return with_lag(self.waiting.pop(0), source, self.policy.updates)

    def _fresh(self, progress: Callable[[int], None] | None = None) -> Collected | None:
        """Prompts for one update: filtered by prompt-level selections and refilled where one asks for it.

        None when dynamic sampling ran dry with nothing kept and the method says to go on.
        """
        wanted = self.config.prompts
        filters = [s for s in self.method.selection if s.level == "prompt"]
        refill = next((s for s in filters if s.refill), None)
        kept: list[Batch] = [] if self.surplus is None else [self.surplus]
        self.surplus = None
        parts: list[Collected] = []
        events: Counter[str] = Counter()
        rounds = 0
        while sum(b.layout.n_prompts for b in kept) < wanted:
            rounds += 1
            made = self.source(self.stream.take(wanted), progress)
            parts.append(made)
            events.update(made.events)
            batch = made.batch
            for selection in filters:
                keep = selection(batch)
                events[f"dropped by {type(selection).__name__}"] += int((~keep).sum())
                batch = batch.take_prompts(keep)
            if batch.layout.n_prompts:
                kept.append(batch)
            limit = refill.rounds if isinstance(refill, DynamicSampling) else 0
            if refill is None or (limit and rounds >= limit):
                break
        return self._merge(kept, parts, events, rounds, refill)

    def _merge(
        self, kept: list[Batch], parts: list[Collected], events: Counter[str], rounds: int, refill: Any
    ) -> Collected | None:
        wanted = self.config.prompts
        have = sum(b.layout.n_prompts for b in kept)
        if refill is not None:
            events["sampling rounds"] += rounds
            if have < wanted:
                events["sampling ran dry"] += 1
                if refill.when_dry == "raise":
                    raise DataError(
                        f"after {rounds} rounds only {have} of {wanted} prompts had a mixed outcome: the others are all "
                        "solved or all failed. Use other prompts, or when_dry=train"
                    )
        if not kept:
            return None
        batch = kept[0] if len(kept) == 1 else Batch.concat(kept)
        if have > wanted:
            if getattr(refill, "surplus", "drop") == "keep":
                self.surplus = batch.take_prompts(range(wanted, have))
            batch = batch.take_prompts(range(wanted))
        names = dict.fromkeys(n for p in parts for n in p.parts)
        means = {n: sum(p.parts.get(n, 0.0) for p in parts) / len(parts) for n in names}
        return Collected(
            batch,
            events,
            means,
            sum(p.generation_seconds for p in parts),
            sum(p.reward_seconds for p in parts),
            sum(p.sampled_tokens for p in parts),
        )

    # -- metrics ---------------------------------------------------------------------------------
    def _warnings(self, metrics: dict[str, float]) -> dict[str, float]:
        """Named events for batches that teach nothing."""
        events = {}
        if metrics.get("truncated") == 1.0:
            events["events/all_truncated"] = 1.0
        if metrics.get("groups/zero_variance") == 1.0:
            events["events/no_group_has_signal"] = 1.0
        if metrics.get("unscored") == 1.0:
            events["events/nothing_scored"] = 1.0
        return events

    def _speed(self, collected: Collected, report: UpdateReport, seconds: float) -> dict[str, float]:
        from unipo.training.flops import flops_per_position, matmul_rate
        from unipo.training.metrics import speed_metrics

        flops = flops_per_position(self.policy)
        return speed_metrics(collected, report, seconds, flops, matmul_rate(self.policy.spec.compute))

    # -- state -----------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        """Everything but the weights that a resumed run needs to continue bit by bit."""
        return {
            "step": self.step_number,
            "drawn": self.stream.drawn,
            "prompts": len(self.stream.prompts),
            "optimiser": self.optimiser.state(),
            "states": self.states,
            "surplus": self.surplus,
            "waiting": self.waiting,
            "sampled": self.sampled,
            "updates": self.policy.updates,
            "reference": None
            if self.policy.spec.reference != "ema" or self.policy.reference is None
            else self.policy.reference.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`; the weights are loaded separately."""
        if state["prompts"] != len(self.stream.prompts):
            raise DataError(
                f"the run was started on {state['prompts']} training prompts, now there are {len(self.stream.prompts)}: "
                "the data changed, so it cannot be resumed"
            )
        self.step_number = state["step"]
        self.stream.drawn = state["drawn"]
        self.optimiser.load(state["optimiser"])
        self.states, self.surplus = state["states"], state["surplus"]
        # Checkpoints of before there were asynchronous sources have neither.
        self.waiting, self.sampled = state.get("waiting", []), state.get("sampled", 0)
        self.policy.updates = state["updates"]
        if state["reference"] is not None and self.policy.reference is not None:
            self.policy.reference.load_state_dict(state["reference"])


def with_lag(collected: Collected | None, source: Source, updates: int) -> Collected | None:
    """Add column `lag` if the source promises it: how many batches were trained since the sampling weights."""
    if collected is None or "lag" not in source.adds:
        return collected
    lag = (updates - collected.batch.version + source.updates - 1) // source.updates
    return replace(collected, batch=collected.batch.with_columns(None, lag=lag))


def _old_logp_plan(config: TrainConfig, source: Source, setup: Setup, needs: frozenset[str]) -> str:
    """'live', 'behaviour' or 'recompute': the cheapest exact source of the old policy's log-probs.

    With one update per batch the old policy is the current one, so the forward pass itself gives them, unless a
    part reads them before it.  An exact engine's own log-probs serve otherwise, if the present weights wrote them.
    """
    if config.old_logp != "auto":
        return config.old_logp
    early = any(
        "old_logp" in part.needs for name, part in setup.method.parts if name in ("shaping", "advantage", "credit")
    )
    early = early or any("old_logp" in s.needs for s in setup.method.signals)
    # What is prepared over a minibatch is counted before its forward pass.
    early = early or "current_logp" in needs
    early = early or any("old_logp" in t.objective.needs for t in setup.method.terms if t.objective.prepares)
    if source.updates == 1 and not early:
        return "live"
    return "behaviour" if setup.engine.exact and not source.ahead else "recompute"
