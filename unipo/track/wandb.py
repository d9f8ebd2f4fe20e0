"""Weights & Biases. Offline in RUN/wandb unless WANDB_MODE says otherwise: `wandb sync RUN/wandb/offline-*` uploads.

WANDB_PROJECT, WANDB_ENTITY and its other variables are read by the package itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import wandb

from unipo.track.tracker import Beginning

PROJECT = "unipo"


class WandB:
    """One wandb run per run directory, gone on with after a resume."""

    def start(self, beginning: Beginning) -> None:
        settings: dict[str, Any] = {"silent": True} if "WANDB_SILENT" not in os.environ else {}
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=beginning.run.name,
            # The same directory name is the same run, in a process that resumes it too.
            id=re.sub(r"[^A-Za-z0-9_-]", "-", beginning.run.name)[:64],
            resume="allow",
            dir=str(beginning.run),
            config=dict(beginning.config),
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            settings=wandb.Settings(**settings),
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def text(self, name: str, body: str) -> None:
        self.run.summary[name] = body

    def summary(self, values: Mapping[str, float]) -> None:
        self.run.summary.update(dict(values))

    def close(self) -> None:
        self.run.finish()
