"""Which problems `unipo eval` asks, and whether the run that a model comes from was trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from unipo.command.models import made_in_python
from unipo.errors import ConfigError, DataError
from unipo.tasks.task import Example, Task
from unipo.training.config import DataConfig, TrainConfig, from_dict, to_dict
from unipo.training.defaults import STARTER
from unipo.training.saved import Saved
from unipo.training.shorthand import expand


def data_config(o: Any, trained: TrainConfig | None = None) -> DataConfig:
    """The data section, with the short options in it. trained: the run's, whose task is the one if none is named."""
    values: dict[str, Any] = {}
    for f in fields(DataConfig):
        value = getattr(o.data, f.name)
        if hasattr(value, "__dataclass_fields__"):
            value = {g.name: v for g in fields(value) if (v := getattr(value, g.name)) is not None}
        if value not in ("", {}):
            values[f.name] = value
    short = {name: getattr(o, f"short_{name}") for name in ("task", "data", "reward")}
    section = expand({**{f"data.{k}": v for k, v in values.items()}, **{k: v for k, v in short.items() if v}})
    data: DataConfig = from_dict(DataConfig, section["data"], "data.")
    if data.task and data.data:
        raise ConfigError(f"give --task or --data, not both: {data.task!r} and {data.data!r}")
    if not data.task and not data.data:
        if trained is not None:
            return _as_trained(trained.data, data)
        if o.model not in ("", STARTER):
            raise ConfigError("what is it to be evaluated on? give --task NAME or --data FILE")
    return data


def _as_trained(run: DataConfig, given: DataConfig) -> DataConfig:
    """The run's data section, with what was given on the command line over it."""
    plain = DataConfig()
    own = {f.name: getattr(given, f.name) for f in fields(given) if getattr(given, f.name) != getattr(plain, f.name)}
    return DataConfig(**{**{f.name: getattr(run, f.name) for f in fields(run)}, **own})


def named(o: Any) -> bool:
    """Was it said on the command line what to evaluate on?"""
    return bool(o.short_task or o.short_data or o.data.task or o.data.data)


def refuse_unknown(o: Any, saved: Saved | None, trained: TrainConfig | None) -> None:
    """Raise ConfigError where the run's own task or reward is asked for, and was an object that only Python knew."""
    made = made_in_python(saved)
    if trained is not None and not (trained.data.task or trained.data.data) and "task" not in made:
        made = ["task", *made]  # a run from before it was noted down: one by name writes down which
    if named(o) or not made or (made == ["reward"] and (o.short_reward or o.data.reward)):
        return
    options = [*(["--task or --data"] if "task" in made else []), *(["--reward"] if "reward" in made else [])]
    raise ConfigError(
        f"the run's {' and '.join(made)} came from Python (unipo.train) and cannot be made again here: give "
        f"{' and '.join(options)}"
    )


def held_out(data: DataConfig, run: DataConfig) -> bool:
    """Are these problems other than those a run was trained on, as far as its settings tell?

    A task keeps problems of its own to evaluate on.  Rows of the training data are held out only where the run itself
    held these out.
    """
    if not data.data or not run.data:
        return True
    if data.heldout.file is not None or data.heldout.split is not None:
        source = (data.heldout.file or data.data, data.heldout.split or "")
    else:
        source = (data.data, data.split)
    if (Path(source[0]).resolve(), source[1]) != (Path(run.data).resolve(), run.split):
        return True
    return run.heldout.asked and (data.heldout, data.limit) == (run.heldout, run.limit)


def refuse_trained_on(data: DataConfig, run: DataConfig, task: Task) -> None:
    """Raise ConfigError where nobody named the problems, and a run's own would be those it was trained on."""
    if task.heldout and held_out(data, run):
        return
    what = "other prompts" if run.heldout.asked else "nothing"
    raise ConfigError(
        f"the run held {what} out, and was trained on these: give --data FILE, or name the same file to ask for them"
    )


def not_default(data: DataConfig) -> dict[str, Any]:
    """The settings of the data that are not the defaults."""
    plain = to_dict(DataConfig())
    return {name: value for name, value in to_dict(data).items() if value != plain[name]}


def problems(task: Task, data: DataConfig, limit: int) -> Sequence[Example]:
    """Held-out problems where there are some, else all rows of the data."""
    chosen = task.heldout or (task.train if data.data else ())
    if not chosen:
        raise DataError(f"the task {task.name!r} has no held-out problems to evaluate on")
    return chosen[:limit] if limit else chosen
