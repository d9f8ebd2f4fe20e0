"""MLflow. In RUN/mlflow.db unless MLFLOW_TRACKING_URI says otherwise: `mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db`.

A database of one file, because MLflow no longer accepts its older directory of files.

MLFLOW_EXPERIMENT_NAME and its other variables are read by the package itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Metric, Param, RunStatus
from mlflow.tracking import MlflowClient
from mlflow.utils.time import get_current_time_millis

from unipo.track.tracker import Beginning

EXPERIMENT = "unipo"
# What the service accepts in one request, and in one value.
PARAMS, VALUE = 100, 500
_ODD = re.compile(r"[^A-Za-z0-9_\-. /:]")


class MLflow:
    """One MLflow run per run directory; its id is kept in RUN/mlflow-run-id, so that a resumed run goes on with it."""

    def start(self, beginning: Beginning) -> None:
        own, folder = os.environ.get("MLFLOW_TRACKING_URI"), beginning.run.resolve()
        self.client = MlflowClient(tracking_uri=own or f"sqlite:///{folder / 'mlflow.db'}")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        known = self.client.get_experiment_by_name(name)
        files = None if own else (folder / "mlflow").as_uri()
        experiment = known.experiment_id if known is not None else self.client.create_experiment(name, files)
        file = beginning.run / "mlflow-run-id"
        if beginning.after and file.is_file():
            self.id: str = self.client.get_run(file.read_text().strip()).info.run_id
            return
        self.id = self.client.create_run(experiment, run_name=beginning.run.name).info.run_id
        file.write_text(self.id + "\n")
        params = [Param(_plain(k), str(v)[:VALUE]) for k, v in beginning.config.items()]
        for start in range(0, len(params), PARAMS):
            self.client.log_batch(self.id, params=params[start : start + PARAMS])

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        now = get_current_time_millis()
        self.client.log_batch(self.id, metrics=[Metric(_plain(k), float(v), now, step) for k, v in metrics.items()])

    def text(self, name: str, body: str) -> None:
        self.client.log_text(self.id, body, f"{name}.txt")

    def summary(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self.client.set_tag(self.id, _plain(name), f"{value:.6g}")

    def close(self) -> None:
        self.client.set_terminated(self.id, RunStatus.to_string(RunStatus.FINISHED))


def _plain(name: str) -> str:
    """A name of letters it accepts."""
    return _ODD.sub("_", name)
