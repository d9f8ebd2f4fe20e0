"""lm-evaluation-harness on a saved model: its own tasks, prompts and metrics, for numbers that others publish too.

Source: EleutherAI/lm-evaluation-harness, lm_eval/evaluator.py: simple_evaluate, lm_eval/models/huggingface.py: HFLM.
The model is loaded anew by the harness through plain transformers, so unipo's own kernels are not involved.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from unipo.errors import ConfigError, MissingExtra
from unipo.policy.loading import adapter_base, refuse_stacked


def run_harness(
    model: str, names: Sequence[str], *, limit: int = 0, tasks: str = "", seed: int = 0, compute: str = "float32"
) -> dict[str, Any]:
    """Results of the named tasks: {"results": {task: {metric: {"value", "standard_error"}}}, "samples", "versions"}.

    model: a directory that transformers (or peft) loads, or a hub id.  limit: use so many documents per task; 0: all.
    tasks: a directory with more tasks as YAML.  Metrics are named as the harness does, "acc,none".
    Raises MissingExtra without the package, ConfigError for a task nobody knows.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtra("lm-eval", "lm-eval", "running tasks of lm-evaluation-harness (--harness)") from error
    if tasks and not Path(tasks).is_dir():
        raise ConfigError(f"--harness-tasks {tasks!r} is not a directory")
    device = "cuda" if torch.cuda.is_available() else "cpu"  # it would take cuda for granted
    manager = TaskManager(include_path=tasks or None)
    for name in names:
        if name not in manager.all_tasks:
            raise _unknown(name, manager.all_tasks)
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=HFLM(**_loading(model), dtype=compute, device=device, trust_remote_code=False),
        tasks=list(names),
        limit=limit or None,
        task_manager=manager,
        bootstrap_iters=1000,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
        log_samples=False,
    )
    return {
        "results": {task: _metrics(values) for task, values in found["results"].items()},
        "samples": {task: n["effective"] for task, n in found["n-samples"].items()},
        "task_versions": dict(found["versions"]),
        "versions": {"lm-eval": lm_eval.__version__},
    }


def _loading(model: str) -> dict[str, Any]:
    """Arguments of HFLM; an adapter is put on the model it was trained from."""
    base = adapter_base(model)
    if base is None:
        return {"pretrained": model}
    refuse_stacked(base, model)
    return {"pretrained": base, "peft": model, "tokenizer": model}


def _metrics(values: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Each "metric,filter" with its "metric_stderr,filter"."""
    found: dict[str, dict[str, float | None]] = {}
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{kind}")
        found[key] = {"value": float(value), "standard_error": error if isinstance(error, float) else None}
    return found


def _unknown(name: str, known: Sequence[str]) -> ConfigError:
    """The harness knows thousands of tasks; only the nearest are named."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    return ConfigError(f"lm-evaluation-harness has no task {name!r}{hint} (`lm-eval ls tasks` lists them)")
