"""Runs spread over processes, one torch thread each; with one process they happen here."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import unipo
from unipo import errors
from unipo.compare.worker import INTERRUPTED, Job, perform, write_job
from unipo.errors import ConfigError, TrainingError, UnipoError

# Called with a finished job and why it is not finished ("" if it is).
Report = Callable[[Job, str], None]


def work(jobs: Sequence[Job], workers: int, folder: Path, report: Report) -> None:
    """Do all jobs. An interrupt ends it after the runs that are going on have been told to stop."""
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            reason = perform(job)
            if reason == INTERRUPTED:
                raise KeyboardInterrupt
            report(job, reason)
        return
    _Crew(jobs, min(workers, len(jobs)), folder, report)()


class _Crew:
    """One thread here for each worker process there: it hands out jobs and waits for answers."""

    def __init__(self, jobs: Sequence[Job], workers: int, folder: Path, report: Report) -> None:
        self.waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            self.waiting.put(job)
        self.done: queue.SimpleQueue[tuple[Job | None, str, Exception | None]] = queue.SimpleQueue()
        self.workers, self.report, self.log = workers, report, folder / "workers.log"
        self.processes: list[subprocess.Popen[str]] = []
        self.stopping = False

    def __call__(self) -> None:
        with self.log.open("a") as log:
            self.processes = [self._start(log.fileno()) for _ in range(self.workers)]
            threads = [threading.Thread(target=self._drive, args=(p,), daemon=True) for p in self.processes]
            try:
                for thread in threads:
                    thread.start()
                self._collect()
            finally:
                self._stop()

    def _start(self, log: int) -> subprocess.Popen[str]:
        # Libraries read these when they are imported. A session of its own: Ctrl-C is for the parent to pass on.
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        room = str(Path(unipo.__file__).parents[1])
        paths = {"PYTHONPATH": os.pathsep.join(p for p in (room, os.environ.get("PYTHONPATH", "")) if p)}
        return subprocess.Popen(
            [sys.executable, "-m", "unipo.compare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | threads | paths,
            start_new_session=True,
        )

    def _drive(self, process: subprocess.Popen[str]) -> None:
        while not self.stopping:
            try:
                job = self.waiting.get_nowait()
            except queue.Empty:
                break
            try:
                self.done.put((job, *self._asked(job, process)))
            except Exception as error:  # whoever collects would wait for ever for a thread that ended without a word
                self.done.put((job, "", error))
        self.done.put((None, "", None))

    def _asked(self, job: Job, process: subprocess.Popen[str]) -> tuple[str, Exception | None]:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            place, line = write_job(job), ""
        except OSError as error:
            raise ConfigError(f"cannot write into {job.folder}: {error.strerror}") from error
        with contextlib.suppress(OSError):  # a worker that died is told apart by its missing answer
            print(place, file=process.stdin, flush=True)
            line = process.stdout.readline()
        return self._understood(job, line, process)

    def _understood(self, job: Job, line: str, process: subprocess.Popen[str]) -> tuple[str, Exception | None]:
        if not line.endswith("\n"):  # it died before its answer or in the middle of it
            told = f"the process that ran {job.arm} on {job.task}, seed {job.seed} ended with status {process.wait()}"
            return "", TrainingError(f"{told} (out of memory?); see {self.log}, and go on with the same command")
        answer = json.loads(line)
        if "error" not in answer:
            return answer["unfinished"], None
        kind = getattr(errors, answer["kind"], UnipoError) if answer["kind"] else TrainingError
        # Some errors build their text from parts; the finished text is what arrives here.
        return "", kind(answer["error"]) if kind is not errors.MissingExtra else ConfigError(answer["error"])

    def _collect(self) -> None:
        left = self.workers
        while left:
            job, reason, error = self.done.get()
            if error is not None:
                raise error
            if job is None:
                left -= 1
            elif reason == INTERRUPTED:
                raise KeyboardInterrupt
            else:
                self.report(job, reason)

    def _stop(self) -> None:
        """Tell the workers to stop: a run that is between two steps writes a checkpoint first."""
        self.stopping = True
        for process in self.processes:
            if process.poll() is None and process.stdin is not None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
