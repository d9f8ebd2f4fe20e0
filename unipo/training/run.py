"""A whole run: set up, evaluate, step, log, save, and come back after any interruption."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unipo.batch import Batch
from unipo.errors import CheckpointError
from unipo.evaluate.accuracy import Interval
from unipo.evaluate.heldout import offline_accuracy, sampled_accuracy
from unipo.policy.store import load_weights
from unipo.registry import load_plugin
from unipo.tasks.task import Task
from unipo.training.card import STARTED, versions, write_card
from unipo.training.checkpoint import (
    checkpoint_path,
    load_state,
    newest_good,
    random_state,
    restore_random,
    save_checkpoint,
)
from unipo.training.config import TrainConfig, to_dict
from unipo.training.loop import Trainer
from unipo.training.memory import keep_freed_memory
from unipo.training.progress import Display, measure_of
from unipo.training.ranks import Ranks, start_ranks, stop_ranks
from unipo.training.record import completion_records, method_record, token_records
from unipo.training.resume import refuse_changes
from unipo.training.rundir import RunDir, new_run_path
from unipo.training.setup import Setup, build, end_report


@dataclass(frozen=True)
class Result:
    """What a run came to. seconds: of training itself, without set-up and evaluation."""

    run: str
    method: str
    seconds: float
    steps: int
    before: Interval | None
    after: Interval | None
    interrupted: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The closing line of `unipo train --json`."""
        keys = ("accuracy", "low", "high")
        ends = {
            name: None if value is None else {k: round(value.as_dict()[k], 6) for k in keys}
            for name, value in (("before", self.before), ("after", self.after))
        }
        return {"run": self.run, "method": self.method, "seconds": round(self.seconds, 3), **ends}


def train(config: TrainConfig, reward: Any = None, task: Task | None = None, display: Display | None = None) -> Result:
    """Run a training run, or go on with one by its own settings. reward, task: objects instead of names, from Python."""
    keep_freed_memory()
    ranks = start_ranks()
    try:
        path = Path(config.run)
        if config.resume:
            refuse_changes(config)
        elif not config.run:
            path = ranks.gather_objects(new_run_path(config.method) if ranks.first else path)[0]
        for plugin in config.plugin:  # now, because one may register a tracker
            load_plugin(plugin)
        display = display or Display(config.log.progress and ranks.first)
        folder = RunDir(path, config.resume, ranks.first, config.log.track, display.tracker_failed)
        try:
            with display.stage("loading"):
                setup = build(config, reward, task)
            return _Run(setup, folder, ranks, display)()
        finally:
            folder.close()
            display.close()
    finally:
        stop_ranks(ranks)


class _Run:
    """One call of `train`, after set-up."""

    def __init__(self, setup: Setup, folder: RunDir, ranks: Ranks, display: Display) -> None:
        self.setup, self.folder, self.ranks, self.display = setup, folder, ranks, display
        self.config = setup.config
        self.trainer = Trainer(setup, ranks)
        self.before: Interval | None = None
        self.training_seconds = 0.0
        self.sampled_tokens = 0

    def __call__(self) -> Result:
        made = {"made_in_python": list(self.setup.made_in_python)}
        self.folder.write_config(to_dict(self.config), method_record(self.setup.method) | made)
        if self.config.resume:
            self._resume()
        if self.setup.events:
            self.display.note(f"data: {end_report(self.setup.events)}")
            if not self.trainer.step_number:
                self.folder.event(0, "data", **dict(self.setup.events))
        self.folder.event(self.trainer.step_number, STARTED, **versions())
        if self.before is None and self.config.eval.before and self.trainer.step_number == 0:
            self.before = self.evaluate("before")
        with _interruptible() as stop:
            self.steps(stop)
        after = None
        if self.config.eval.after and not stop.agreed:
            after = self.evaluate("after")
            self._renew_card()
        result = Result(
            str(self.folder.path),
            self.setup.method.name,
            self.training_seconds,
            self.trainer.step_number,
            self.before,
            after,
            stop.agreed,
        )
        self.folder.result(result.as_dict())
        return result

    def steps(self, stop: _Stop) -> None:
        """Train until the last step or until asked to stop; either way the state is on disk afterwards."""
        trainer, every = self.trainer, self.config.save.every
        saved = trainer.step_number if trainer.step_number else -1
        self.display.start(self.config.steps, trainer.step_number)
        while (done := self.done()) < 1 and not self._asked_to(stop):
            start = time.perf_counter()
            trainer.total_steps = self.expected_steps(done)
            metrics, batch = trainer.step(self.display.sampling)
            self.training_seconds += time.perf_counter() - start
            self.sampled_tokens += int(metrics.get("tokens/sampled", 0) + metrics.get("tokens/continued", 0))
            self.log(metrics, batch)
            number = trainer.step_number
            if self._evaluation_due(done):
                self.evaluate("during")
            if every and number % every == 0:
                self.save()
                saved = number
        if saved != trainer.step_number:
            self.save()
        self._asked_to(stop)  # during the last step or the saving, too
        if stop.agreed:
            self.display.note(
                f"stopped after step {trainer.step_number}; go on with: unipo train --resume --run {self.folder.path}"
            )

    def _asked_to(self, stop: _Stop) -> bool:
        """Whether any rank was asked to stop; all of them then do so at the same step."""
        stop.agreed = any(self.ranks.gather_objects(stop.asked))
        return stop.agreed

    def done(self) -> float:
        """Share of the run that is behind: of its steps, or of its budget if that ends it first."""
        budget, number = self.config.budget, self.trainer.step_number
        shares = [number / self.config.steps if self.config.steps else 1.0]
        if budget.tokens:
            shares.append(self.sampled_tokens / budget.tokens)
        if budget.seconds:
            # One number for all ranks, whose clocks differ, or some would stop a step before the others.
            shares.append(self.ranks.gather_objects(self.training_seconds)[0] / budget.seconds)
        return max(shares)

    def expected_steps(self, done: float) -> int:
        """Steps the run will have, for parts with a schedule: under a budget, if steps go on costing what they did."""
        number, most = self.trainer.step_number, self.config.steps
        return min(most, math.ceil(number / done - 1e-9)) if number and done else most

    def _evaluation_due(self, before: float) -> bool:
        """After a step that began with the share `before` behind: is it one of `eval.every` or `eval.points`?"""
        asked, now = self.config.eval, self.done()
        if now >= 1:
            return False  # the evaluation after training follows
        parts = asked.points + 1
        due = asked.every and self.trainer.step_number % asked.every == 0
        return bool(due) or int(now * parts + 1e-9) > int(before * parts + 1e-9)

    def log(self, metrics: dict[str, float], batch: Batch | None) -> None:
        number = self.trainer.step_number
        if batch is not None and self.folder.active:
            metrics |= self.record(number, batch)
        self.folder.metrics(number, metrics)
        for name, value in metrics.items():
            if name.startswith("events/") and value:
                self.folder.event(number, name.removeprefix("events/"), count=value)
        self.display.step(number, metrics)

    def record(self, number: int, batch: Batch) -> dict[str, float]:
        """Write down responses of this step. Returns what that cost."""
        start, trainer = time.perf_counter(), self.trainer
        decode = self.setup.policy.tokenizer.decode
        written = 0
        for record in completion_records(batch, self.config.log.completions, decode):
            written += self.folder.append("completions", {"step": number, **record})
        for record in token_records(batch, trainer.recorded, trainer.watched, decode):
            written += self.folder.append("tokens", {"step": number, **record})
        return {"seconds/record": time.perf_counter() - start, "record/bytes": float(written)}

    def evaluate(self, when: str) -> Interval | None:
        """Held-out accuracy with its interval; None where nothing is held out."""
        setup = self.setup
        if not setup.heldout:
            return None
        with self.display.stage(f"evaluating on {len(setup.heldout)} held-out prompts"):
            if setup.method.online and setup.reward is not None:
                sampling = replace(self.config.sampling, temperature=self.config.eval.temperature)
                interval = sampled_accuracy(
                    setup.policy,
                    setup.engine,
                    setup.reward,
                    setup.heldout,
                    sampling,
                    self.config.eval.samples,
                    self.ranks,
                )
            else:
                interval = offline_accuracy(setup.policy, setup.method, setup.heldout)
        self.folder.evaluation(self.trainer.step_number, when, interval.as_dict())
        self.display.accuracy(when, interval, measure_of(setup.method))
        return interval

    # -- saving and resuming -----------------------------------------------------------------------
    def save(self) -> None:
        self.ranks.barrier()
        if self.ranks.first:
            state = {
                "trainer": self.trainer.state(),
                "random": random_state(),
                "before": self.before,
                "seconds": self.training_seconds,
                "tokens": self.sampled_tokens,
            }
            root = self.folder.path / "checkpoints"
            with _without_progress_bars():
                save_checkpoint(root, self.trainer.step_number, self._save_models, state, self.config.save.keep)
        self.ranks.barrier()

    def _save_models(self, folder: Path) -> None:
        """The policy where plain transformers finds it, its model card, and a value model beside it."""
        self.setup.policy.save(folder)
        write_card(folder, self.folder.path, self.trainer.step_number, self.setup.method)
        if self.setup.value is not None:
            self.setup.value.save(folder.with_name("value"))

    def _renew_card(self) -> None:
        """The last checkpoint was written before the evaluation that its card is to show."""
        model = checkpoint_path(self.folder.path / "checkpoints", self.trainer.step_number) / "model"
        if self.ranks.first and model.is_dir():
            write_card(model, self.folder.path, self.trainer.step_number, self.setup.method)

    def _resume(self) -> None:
        root = self.folder.path / "checkpoints"
        found = newest_good(root)
        if found is None:
            self.display.note("no checkpoint was written yet; starting from the beginning")
            self.folder.cut_after(-1)
            return
        step, path, complaints = found
        state = load_state(path)
        if state["trainer"]["step"] != step:
            raise CheckpointError(f"{path} holds step {state['trainer']['step']}, its name says {step}")
        load_weights(self.setup.policy, path / "model")
        if self.setup.value is not None:
            self.setup.value.load(path / "value")
        self.trainer.load(state["trainer"])
        restore_random(state["random"])
        self.before, self.training_seconds = state["before"], state["seconds"]
        self.sampled_tokens = state["tokens"]
        self.folder.cut_after(step)
        for complaint in complaints:
            self.folder.event(step, "damaged checkpoint passed over", detail=complaint)
            self.display.note(f"damaged checkpoint passed over: {complaint}")
        self.display.note(f"resuming after step {step}")


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """transformers draws a bar for every file it writes, which would run through the display's lines."""
    from transformers import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@dataclass
class _Stop:
    """asked: a signal came to this rank.  agreed: what all ranks know of it at the beginning of a step."""

    asked: bool = False
    agreed: bool = False


@contextmanager
def _interruptible() -> Iterator[_Stop]:
    """The first Ctrl-C (or SIGTERM) finishes the step and saves; the second interrupts at once."""
    stop = _Stop()
    before = {}

    def ask(number: int, frame: Any) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    for kind in (signal.SIGINT, signal.SIGTERM):
        try:
            before[kind] = signal.signal(kind, ask)
        except ValueError:  # not the main thread: the caller handles signals
            break
    try:
        yield stop
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
