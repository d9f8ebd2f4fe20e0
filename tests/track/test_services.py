"""The real packages, without a network: what a run shows can be read back from what they wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unipo.track.trackers import Trackers

CONFIG = {"method": "grpo", "optim": {"learning_rate": 1e-4}, "plugin": [], "odd name (really)": None}
METRICS = {"loss": 0.5, "events/prompt left out (too long)": 2.0}


def show(name: str, run: Path, steps: range, after: int = 0) -> Trackers:
    """A run of these steps, with loss 0.5 at each, shown by one tracker."""
    told: list[Any] = []
    trackers = Trackers([name], lambda *what: told.append(what))
    trackers.begin(run, CONFIG, "loss  -A log p", after)
    for step in steps:
        trackers.log({**METRICS, "step_twice": 2.0 * step}, step)
    trackers.summary({"after/accuracy": 0.75})
    trackers.close()
    assert told == []
    return trackers


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty run directory, and nothing in the environment that would send anything anywhere."""
    for variable in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    place = tmp_path / "grpo-1"
    place.mkdir()
    monkeypatch.chdir(tmp_path)
    return place


def test_tensorboard_files_hold_every_number(run: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra unipo[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    show("tensorboard", run, range(1, 4))
    show("tensorboard", run, range(3, 6), after=2)  # step 3 comes again after a resume from step 2
    seen = EventAccumulator(str(run / "tensorboard"), purge_orphaned_data=True)
    seen.Reload()
    assert [(e.step, e.value) for e in seen.Scalars("step_twice")] == [(i, 2.0 * i) for i in range(1, 6)]
    assert {"loss", "events/prompt left out (too long)"} <= set(seen.Tags()["scalars"])
    (formula,) = seen.Tensors("method/text_summary")
    assert b"-A log p" in formula.tensor_proto.string_val[0]
    (config,) = seen.Tensors("config/text_summary")
    assert b"optim.learning_rate: 0.0001" in config.tensor_proto.string_val[0]
