"""TensorBoard: event files in RUN/tensorboard, read with `tensorboard --logdir RUN`."""

from __future__ import annotations

from collections.abc import Mapping

import yaml
from torch.utils.tensorboard import SummaryWriter

from unipo.track.tracker import Beginning


class TensorBoard:
    """Scalars by step; settings, formula and closing numbers as text. Steps done again after a resume replace the old."""

    def start(self, beginning: Beginning) -> None:
        # purge_step makes TensorBoard hide what an interrupted process wrote of the steps that come again.
        purge = beginning.after + 1 if beginning.after else None
        self.writer = SummaryWriter(str(beginning.run / "tensorboard"), purge_step=purge)  # type: ignore[no-untyped-call]
        if not beginning.after:
            self.text("config", yaml.safe_dump(dict(beginning.config), sort_keys=False))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    def text(self, name: str, body: str) -> None:
        # Markdown there; four spaces make a block that keeps its lines.
        self.writer.add_text(name, "\n".join(f"    {line}" for line in body.splitlines()))  # type: ignore[no-untyped-call]

    def summary(self, values: Mapping[str, float]) -> None:
        self.text("result", "\n".join(f"{name}: {value:.6g}" for name, value in values.items()))

    def close(self) -> None:
        self.writer.close()  # type: ignore[no-untyped-call]
