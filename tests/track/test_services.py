"""The real packages, without a network: what a run shows can be read back from what they wrote."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
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


def records(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file: a LevelDB log, 7 bytes of header and blocks of 32 KiB."""
    data, at, begun = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        if not kind:  # a block filled up with zeros
            at += left
            continue
        begun += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield begun
            begun = b""


def test_wandb_offline_files_hold_every_number_and_one_run_goes_on(run: Path) -> None:
    pytest.importorskip("wandb", reason="the extra unipo[wandb], which is not part of dev")
    from wandb.proto.wandb_internal_pb2 import Record

    show("wandb", run, range(1, 3))
    time.sleep(1.1)  # offline directories are named by the second
    show("wandb", run, range(3, 5), after=2)
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    shown, ids, settings, summary = [], set(), {}, {}
    for file in files:
        for raw in records(file):
            record = Record.FromString(raw)
            if record.HasField("run"):
                ids.add(record.run.run_id)
                settings |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
            if record.HasField("history"):
                values = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                shown.append((values["_step"], values["step_twice"], values["loss"]))
            if record.HasField("summary"):
                summary |= {u.key or ".".join(u.nested_key): json.loads(u.value_json) for u in record.summary.update}
    assert shown == [(i, 2.0 * i, 0.5) for i in range(1, 5)]
    assert ids == {"grpo-1"}
    assert settings["optim.learning_rate"] == 1e-4
    assert summary["method"] == "loss  -A log p"
    assert summary["after/accuracy"] == 0.75


def test_an_mlflow_database_holds_every_number_and_one_run_goes_on(run: Path) -> None:
    pytest.importorskip("mlflow", reason="the extra unipo[mlflow], which is not part of dev")
    pytest.importorskip("sqlalchemy", reason="the extra unipo[mlflow], which is not part of dev")
    from mlflow.tracking import MlflowClient

    show("mlflow", run, range(1, 4))
    show("mlflow", run, range(3, 6), after=2)
    client = MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "unipo"]
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "step_twice")
    assert {(m.step, m.value) for m in history} == {(i, 2.0 * i) for i in range(1, 6)}
    assert found.data.metrics["events/prompt left out _too long_"] == 2.0
    assert found.data.params["optim.learning_rate"] == "0.0001"
    assert found.data.tags["after/accuracy"] == "0.75"
    assert (found.info.run_name, found.info.status) == ("grpo-1", "FINISHED")
    (text,) = run.glob("mlflow/*/artifacts/method.txt")
    assert text.read_text() == "loss  -A log p"


def test_a_trackio_database_holds_every_number_and_one_run_goes_on(run: Path) -> None:
    pytest.importorskip("trackio", reason="the extra unipo[trackio], which is not part of dev")
    place = run.parent / "trackio"
    # In a process of its own, because the package reads where to write when it is imported.
    script = (
        "import sys; from pathlib import Path; from test_services import show\n"
        "show('trackio', Path(sys.argv[1]), range(1, 3)); show('trackio', Path(sys.argv[1]), range(3, 5), after=2)\n"
    )
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"TRACKIO_DIR": str(place), "PYTHONPATH": here}
    done = subprocess.run([sys.executable, "-c", script, str(run)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    with sqlite3.connect(place / "unipo.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    shown = [(name, step, json.loads(text)) for name, step, text in rows]
    assert {name for name, *_ in shown} == {"grpo-1"}
    assert [(step, m["step_twice"], m["loss"]) for _, step, m in shown if "loss" in m] == [
        (i, 2.0 * i, 0.5) for i in range(1, 5)
    ]
    assert any(m.get("result/after/accuracy") == 0.75 for _, _, m in shown)
    assert any("-A log p" in json.dumps(m.get("method", "")) for _, _, m in shown)
