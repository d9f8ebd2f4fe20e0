"""The one loop: source -> reward -> selection -> signals -> advantage -> credit -> updates -> weights to the engine.

What differs between methods is in their parts; what must survive a kill is in `Trainer.state`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import CheckpointError, ConfigError, DataError, TrainingError
from unipo.judge import judge, observe, remember
from unipo.parts.source import Source
from unipo.policy.tape import Tape
from unipo.rewards.combine import made_of
from unipo.rollout.local import LocalEngine
from unipo.training.ahead import Queue
from unipo.training.collect import Collector
from unipo.training.config import TrainConfig
from unipo.training.continuations import Continuer
from unipo.training.critic import Critic
from unipo.training.metrics import batch_metrics, update_metrics
from unipo.training.optim import Optimiser
from unipo.training.prompts import PromptStream
from unipo.training.ranks import Ranks
from unipo.training.record import Watched, chosen_rows, marked
from unipo.training.replay import Replays
from unipo.training.rewriting import PolicyRewriter
from unipo.training.samplers import sampler_for
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
        self.scorer = RankedScorer(self.policy, self.ranks, setup.value, chat=self.config.data.chat)
        self.stream = PromptStream(setup.train, self.config.seed, self.method.curriculum)
        total = self.config.steps * self.method.source.updates
        self.critic: Critic | None = None
        trained = self.policy.named_parameters()
        if self.method.value is not None and setup.value is not None:
            self.critic = Critic(setup.value, self.method.value, self.config.optim, total, self.ranks)
            trained += setup.value.named_parameters() if setup.value.shared else []
        self.optimiser = Optimiser(self.config.optim, trained, total)
        self.states: dict[str, Any] = {}
        self.step_number = 0
        self.total_steps = self.config.steps
        self.recorded: list[int] = []
        self.watched: Watched = {}
        self.source: Sampler | Reader = Reader(self.method)
        if self.method.online:
            if setup.reward is None:
                raise TrainingError(f"{self.method.name} samples responses but there is no reward")
            where = (self.policy, setup.engine, setup.reward)
            self.source = sampler_for(self.method, *where, self.config.sampling, self.config.seed, self.ranks)
            self.scorer.continuer = Continuer(*where, self.config.sampling, self.config.seed, self.ranks)
        rewriter = PolicyRewriter(setup, self.stream, self.ranks)
        self.collector = Collector(self.method, self.source, self.stream, self.config.prompts, rewriter)
        self.old_logp = _old_logp_plan(self.config, self.method.source, setup, self.method.needs)
        self.queue = Queue(self.method.source, self.config.prompts)
        self.replays = Replays(self.method, self.policy, self.optimiser, self.ranks, self.scorer)

    # -- one step --------------------------------------------------------------------------------
    def step(self, progress: Callable[[int], None] | None = None) -> tuple[dict[str, float], Batch | None]:
        """Sample (or read), judge and update once. Returns (metrics, judged batch, None if nothing qualified)."""
        start = time.perf_counter()
        self.step_number += 1
        self.scorer.passes = self.scorer.sampled = 0
        self.scorer.events.clear()
        tape = self._record()
        collected = self.collect(progress)
        self._stop_recording()
        if collected is None:
            lost = {"tokens/sampled": float(self.collector.lost_tokens), "seconds/step": time.perf_counter() - start}
            return {"events/no_prompt_qualified": 1.0, "updates/skipped": 1.0, **lost}, None
        batch = replace(
            collected.batch, step=self.step_number, total_steps=max(1, self.total_steps), states=self.states
        )
        raw: Tensor | None = batch.reward if batch.has("reward") else None
        plan = self._plan_for(batch)
        if plan == "behaviour" and "old_logp" in self.method.needs and batch.has("behaviour_logp"):
            batch = batch.with_columns(None, old_logp=batch.behaviour_logp)
        batch = judge(self.method, batch, self.scorer)
        batch, extra, told = self.replays(batch, self._sampler_is_old(batch, plan), plan == "recompute")
        report = self._update(batch, tape, plan if extra is None else "stored")
        if extra is not None:
            report.count(extra)
        self.states = dict(remember(self.method, batch).states)
        metrics = batch_metrics(collected, batch, self.method, raw) | update_metrics(report) | told
        metrics["passes/extra"] = float(self.scorer.passes + report.passes)
        if self.scorer.sampled:
            metrics["tokens/continued"] = float(self.scorer.sampled)
        for name, count in self.scorer.events.items():
            metrics[f"events/{name}"] = metrics.get(f"events/{name}", 0.0) + count
        metrics["epoch"] = self.stream.epoch
        metrics |= self._warnings(metrics)
        metrics |= self._speed(collected, report, time.perf_counter() - start)
        return metrics, batch

    def _plan_for(self, batch: Batch) -> str:
        """`old_logp` of this batch: the sampler's numbers are not the old policy's where older weights wrote tokens."""
        if self.config.old_logp != "auto" or self.old_logp != "behaviour":
            return self.old_logp
        return "recompute" if self._written_before(batch) else "behaviour"

    def _sampler_is_old(self, batch: Batch, plan: str) -> bool:
        """May the sampler's log-probs of this batch be stored as the old policy's?"""
        if not self.setup.engine.exact or self.method.source.ahead:
            return False
        return plan == "behaviour" or (plan == "live" and not self._written_before(batch))

    def _written_before(self, batch: Batch) -> bool:
        """Whether older weights wrote a token of this batch that may be trained on."""
        if not batch.has("version"):
            return False
        older = batch.version != self.policy.updates
        if batch.has("fresh"):
            older &= batch.fresh
        if batch.has("demonstration"):
            older &= ~batch.layout.to_tokens(batch.demonstration)
        return bool(older.any())

    def _update(self, batch: Batch, tape: Tape | None, old_logp: str) -> UpdateReport:
        learner = (self.policy, self.optimiser, self.ranks, self.scorer)
        log = self.config.log
        self.recorded = chosen_rows(batch, log.completions, log.tokens)
        seen = marked(batch, self.recorded)
        report = run_updates(self.method, seen, *learner, old_logp, tape, self.critic)
        self.watched = report.watched
        return report

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
        waiting = self.collector.surplus
        if waiting is not None:
            self.collector.surplus = waiting.with_columns(None, taped=torch.full_like(waiting.taped, -1))

    # -- collecting ------------------------------------------------------------------------------
    def collect(self, progress: Callable[[int], None] | None = None) -> Collected | None:
        """The batch of this step: fresh, or the oldest of those that an asynchronous source has sampled ahead."""
        return self.queue(lambda: self._fresh(progress), max(0, self.step_number - 1), self.policy.updates)

    def _fresh(self, progress: Callable[[int], None] | None = None) -> Collected | None:
        """Prompts for one update: filtered by prompt-level selections and refilled where one asks for it.

        None where no prompt qualified and the method says to go on.
        """
        collected, sampled = self.collector(self.states, progress)
        if sampled is not None:
            now = replace(sampled, step=self.step_number, total_steps=max(1, self.total_steps), states=self.states)
            self.states = dict(observe(self.method, now).states)
        return collected

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
        return speed_metrics(
            collected, report, seconds, flops, matmul_rate(self.policy.spec.compute, self.policy.device.type)
        )

    # -- state -----------------------------------------------------------------------------------
    def state(self) -> dict[str, Any]:
        """Everything but the weights that a resumed run needs to continue bit by bit."""
        return {
            "format": _FORMAT,
            "step": self.step_number,
            "stream": self.stream.state(),
            "prompts": self.stream.digest,
            "reward": None if self.setup.reward is None else made_of(self.setup.reward),
            "optimiser": self.optimiser.state(),
            "states": self.states,
            "surplus": self.collector.surplus,
            "stored": self.replays.stored,
            "source": self.source.state(),
            "value": None if self.critic is None else self.critic.state(),
            "queue": self.queue.state(),
            "updates": self.policy.updates,
            "reference": None
            if self.policy.spec.reference != "ema" or self.policy.reference is None
            else self.policy.reference.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`; the weights are loaded separately."""
        if state.get("format") != _FORMAT:
            raise CheckpointError(
                "the run was begun by a version of unipo whose checkpoints this one cannot go on from"
            )
        if state["prompts"] != self.stream.digest:
            raise DataError(
                "the training prompts, their answers or their responses are not those the run was started on (now there "
                f"are {len(self.stream.prompts)} prompts): the data changed, so it cannot be resumed"
            )
        reward = None if self.setup.reward is None else made_of(self.setup.reward)
        if state["reward"] != reward:
            raise ConfigError(
                f"the run was started with the reward {state['reward']!r}, now it is {reward!r}: pass the same one, "
                "from Python unipo.train(run=..., resume=True, reward=...)"
            )
        self.step_number = state["step"]
        self.stream.load(state["stream"])
        self.optimiser.load(state["optimiser"])
        self.states, self.collector.surplus = state["states"], state["surplus"]
        self.replays.stored = state["stored"]
        self.source.load(state["source"])
        self.queue.load(state["queue"])
        self.policy.updates = state["updates"]
        if self.critic is not None:
            self.critic.load(state["value"])
        if state["reference"] is not None and self.policy.reference is not None:
            self.policy.reference.load_state_dict(state["reference"])


_FORMAT = 2  # of `Trainer.state`; another number for every change that an older state does not fit
_BEFORE_THE_PASS = ("shaping", "advantage", "credit", "selection")


def _old_logp_plan(config: TrainConfig, source: Source, setup: Setup, needs: frozenset[str]) -> str:
    """'live', 'behaviour' or 'recompute': the cheapest exact source of the old policy's log-probs.

    With one update per batch the old policy is the current one, so the forward pass itself gives them, unless a
    part reads them before it.  An exact engine's own log-probs serve otherwise, if the present weights wrote them.
    """
    if config.old_logp != "auto":
        return config.old_logp
    early = any("old_logp" in part.needs for name, part in setup.method.parts if name in _BEFORE_THE_PASS)
    early = early or any("old_logp" in s.needs for s in setup.method.signals)
    # What is prepared over a minibatch is counted before its forward pass.
    early = early or "current_logp" in needs
    early = early or any("old_logp" in t.objective.needs for t in setup.method.terms if t.objective.prepares)
    if source.updates == 1 and not early:
        return "live"
    return "behaviour" if setup.engine.exact and not source.ahead else "recompute"
