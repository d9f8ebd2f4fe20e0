"""trackio. On this machine, where `trackio show` looks, unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say otherwise.

TRACKIO_DIR and its other variables are read by the package itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import trackio

from unipo.track.tracker import Beginning


class Trackio:
    """One trackio run per run directory, gone on with after a resume."""

    def start(self, beginning: Beginning) -> None:
        config = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in beginning.config.items()}
        with redirect_stdout(sys.stderr):  # where it explains itself; standard output is for results
            self.run: Any = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", "unipo"),
                name=beginning.run.name,
                config=config,
                resume="allow" if beginning.after else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def text(self, name: str, body: str) -> None:
        self.run.log({name: trackio.Markdown(body)})

    def summary(self, values: Mapping[str, float]) -> None:
        self.run.log({f"result/{name}": value for name, value in values.items()})

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            trackio.finish()  # not the run's own, which would be called once more when the process ends
