"""From a name on the command line to a saved model and the run it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unipo.errors import CheckpointError, ConfigError
from unipo.training.checkpoint import list_checkpoints, newest_good, verify_checkpoint


@dataclass(frozen=True)
class Saved:
    """A model directory. run, step: where it was trained, if it lies in a run's checkpoint."""

    model: Path
    run: Path | None = None
    step: int | None = None


def find_saved(name: str | Path) -> Saved | None:
    """The model in a run (its newest whole checkpoint), in a checkpoint, or in a directory; None for another name.

    Raises CheckpointError for a run without a checkpoint, and where the checkpoint is damaged; ConfigError for a
    directory of runs.
    """
    path = Path(name)
    if not str(name) or not path.is_dir():
        return None
    if is_run(path):
        found = newest_good(path / "checkpoints")
        if found is None:
            raise CheckpointError(f"the run {path} has no checkpoint yet")
        return Saved(found[1] / "model", path, found[0])
    if not (path / "config.json").is_file() and (runs := sorted(p for p in path.iterdir() if is_run(p))):
        raise ConfigError(f"{path} holds {len(runs)} runs; name one of them, such as {runs[-1]}")
    folder = path / "model" if (path / "trainer.pt").is_file() else path
    place = folder.resolve()
    run = place.parents[2] if len(place.parents) > 2 else place
    for step, checkpoint in list_checkpoints(run / "checkpoints") if is_run(run) else ():
        if checkpoint == place.parent:
            if problem := verify_checkpoint(checkpoint):
                raise CheckpointError(f"{checkpoint} is damaged: {problem}")
            return Saved(folder, run, step)
    return Saved(folder)


def is_run(path: Path) -> bool:
    """Is this the directory of a run?"""
    return (path / "config.yaml").is_file() and (path / "checkpoints").is_dir()
