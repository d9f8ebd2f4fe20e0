"""One run from beginning to end, and the process that does one after another.

A worker reads the place of a job file per line and answers each with a line of JSON.  When its parent is gone, it
leaves at once, in the middle of a run: the run is finished by whoever starts the comparison again.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unipo.compare.code import worked_on
from unipo.compare.outcome import NAME, outcome_of, write
from unipo.errors import ConfigError, RewardError, TrainingError, UnipoError

INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Job:
    """One run to be done. config: of the run, as plain values."""

    arm: str
    task: str
    seed: int
    unit: str
    config: Mapping[str, Any]
    measure: str = ""
    keep: bool = False

    @property
    def folder(self) -> Path:
        """Directory of the run."""
        return Path(self.config["run"])


def perform(job: Job) -> str:
    """Do a run, or what is left of it. Returns "" when it is finished, else why it is not.

    A run that fails by itself (a non-finite gradient, a reward that raised) is such a reason; what is wrong with the
    settings would be wrong for every run, and is raised.
    """
    from unipo.training.checkpoint import list_checkpoints
    from unipo.training.config import TrainConfig, from_dict
    from unipo.training.resume import begun
    from unipo.training.run import train

    if (job.folder / NAME).is_file():
        return ""
    # As it is loaded now, not as it may have been changed by the end of a run.
    code = worked_on(job.folder, bool(list_checkpoints(job.folder / "checkpoints")))
    # A run begun goes on by what it wrote down; that this is still what is asked was settled for all runs.
    values = begun(str(job.folder)) if (job.folder / "config.yaml").is_file() else job.config
    try:
        with one_thread():
            result = train(from_dict(TrainConfig, values))
            if result.interrupted:
                return INTERRUPTED
            measures = measured(job)
    except (TrainingError, RewardError) as error:
        return str(error)
    outcome = outcome_of(job.folder, job.arm, job.task, job.seed, job.unit, measures)
    write(replace(outcome, code=code), job.folder)
    if not job.keep:
        shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
    return ""


def measured(job: Job) -> dict[str, float]:
    """The numbers that the plan's own function reads from a finished run."""
    if not job.measure:
        return {}
    from unipo.registry import load_plugin

    path, _, name = job.measure.rpartition(":")
    load_plugin(path)
    function = getattr(sys.modules[f"unipo_plugin_{Path(path).stem}"], name, None)
    if function is None:
        raise ConfigError(f"{path} has no function {name!r} to measure a run with")
    found = function(job.folder)
    if not isinstance(found, Mapping) or not all(isinstance(v, int | float) for v in found.values()):
        raise ConfigError(f"{job.measure} must return a mapping of names to numbers, got {found!r}")
    return {str(k): float(v) for k, v in found.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Every run with one torch thread, so that its numbers do not depend on how many run beside it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- the process -----------------------------------------------------------------------------------
def main() -> None:
    """Do jobs until the parent closes the line."""
    # What libraries and rewards print must not run into the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    waiting: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(waiting,), daemon=True).start()
    while True:
        answer = _answer(perform, Path(waiting.get()))
        print(json.dumps(answer), file=answers)
        if answer.get("unfinished") == INTERRUPTED:
            return  # told to stop; the state of the run is on disk


def _listen(waiting: queue.Queue[str]) -> None:
    for line in sys.stdin:
        waiting.put(line.strip())
    os._exit(0)  # the parent has gone, or needs nothing more


def _answer(work: Callable[[Job], str], place: Path) -> dict[str, str]:
    """What became of a job: `unfinished` if it is not done, `error` and `kind` if nothing can be done with it."""
    try:
        return {"unfinished": work(Job(**json.loads(place.read_text())))}
    except UnipoError as error:
        return {"error": str(error), "kind": type(error).__name__}
    except Exception:  # a fault of the library or of a plugin: the parent shows it whole
        return {"error": traceback.format_exc(), "kind": ""}


def write_job(job: Job) -> Path:
    """A job as a file in its run's directory, for a worker."""
    job.folder.mkdir(parents=True, exist_ok=True)
    place = job.folder / "job.json"
    place.write_text(json.dumps(asdict(job)) + "\n")
    return place


if __name__ == "__main__":
    main()
