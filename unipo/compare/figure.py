"""Curves and intervals as a picture (extra `plots`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unipo.compare.outcome import Outcome, of_arm
from unipo.errors import MissingExtra
from unipo.evaluate.statistics import Estimate, bootstrap, mean_score

# Colours that stay apart for colour-blind readers (Okabe and Ito), then by line style.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")
GRID = 41


def require() -> None:
    """Raise MissingExtra before anything slow if pictures cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            "matplotlib", "plots", "drawing the comparison (or leave it out with --no-figure)"
        ) from error


def on_grid(outcomes: Sequence[Outcome], unit: str, places: Sequence[float]) -> Tensor:
    """[runs, places] scores between the evaluations, by straight lines; the last score holds after the last one."""
    rows = []
    for outcome in outcomes:
        x, y = [float(getattr(p, unit)) for p in outcome.curve], [p.score for p in outcome.curve]
        rows.append([_between(x, y, at) for at in places])
    return torch.tensor(rows, dtype=torch.float64)


def _between(x: Sequence[float], y: Sequence[float], at: float) -> float:
    if at <= x[0]:
        return y[0]
    for i in range(1, len(x)):
        if at <= x[i]:
            return y[i - 1] + (y[i] - y[i - 1]) * (at - x[i - 1]) / (x[i] - x[i - 1])
    return y[-1]


def draw(
    outcomes: Sequence[Outcome],
    arms: Sequence[str],
    tasks: Sequence[str],
    budget: Mapping[str, Any],
    path: Path,
    bars: Mapping[str, Mapping[str, Estimate]] | None = None,
) -> Path:
    """One panel of curves per task, and one of points with intervals per entry of `bars` (name -> arm -> estimate)."""
    require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = bars or {}
    panels = len(tasks) + len(bars)
    across = min(panels, 3)
    down = -(-panels // across)
    height = 3.4 if tasks else 1.6 + 0.3 * len(arms)
    figure = Figure(figsize=(4.6 * across, height * down + 0.3 * len(arms) / 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).flatten()
    looks = {a: (COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]) for i, a in enumerate(arms)}
    if not tasks:  # points are named beside their axis
        looks = dict.fromkeys(arms, (COLOURS[0], STYLES[0]))
    for axis, task in zip(axes, tasks, strict=False):
        _curves(axis, outcomes, task, budget, looks)
    for axis, (name, values) in zip(axes[len(tasks) :], bars.items(), strict=False):
        _points(axis, name, values, looks)
    for axis in axes[panels:]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:  # points are named beside their axis
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(arms)), frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _curves(axis: Any, outcomes: Sequence[Outcome], task: str, budget: Mapping[str, Any], looks: Any) -> None:
    unit, amount = budget["unit"], float(budget["amount"])
    places = [amount * i / (GRID - 1) for i in range(GRID)]
    for arm, (colour, style) in looks.items():
        runs = of_arm(outcomes, arm, task)
        if not runs:
            continue
        scores = on_grid(runs, unit, places)
        axis.plot(places, scores.mean(0).tolist(), style, color=colour, label=arm, linewidth=1.6)
        if len(runs) > 1:
            ends = [bootstrap(mean_score, scores[:, [i]], draws=2000) for i in range(GRID)]
            axis.fill_between(
                places, [e.low for e in ends], [e.high for e in ends], color=colour, alpha=0.15, linewidth=0
            )
    axis.set_title(task, fontsize=9)
    axis.set_xlabel({"tokens": "sampled tokens", "steps": "steps", "seconds": "seconds of training"}[unit], fontsize=8)
    axis.set_ylabel("held-out score", fontsize=8)
    _plain(axis)


def _points(axis: Any, name: str, values: Mapping[str, Estimate], looks: Any) -> None:
    for place, (arm, e) in enumerate(values.items()):
        colour = looks[arm][0]
        if e.low is not None and e.high is not None:
            axis.plot([e.low, e.high], [-place, -place], color=colour, linewidth=4, alpha=0.4, solid_capstyle="butt")
        axis.plot([e.value], [-place], "o", color=colour, markersize=5)
    axis.set_yticks([-i for i in range(len(values))], list(values))
    axis.set_ylim(0.7 - len(values) - 0.4, 0.7)
    axis.set_title(name, fontsize=9)
    _plain(axis)


def _plain(axis: Any) -> None:
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25, linewidth=0.5)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
