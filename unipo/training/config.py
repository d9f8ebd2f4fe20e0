"""Everything a run can be told, as typed dataclasses; each key is checked, with the nearest name for an unknown one."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from unipo.errors import ConfigError, unknown
from unipo.policy.spec import PolicySpec
from unipo.rollout.engine import Sampling
from unipo.tasks.dataset import Heldout
from unipo.tasks.fields import Fields


@dataclass(frozen=True)
class DataConfig:
    """What is trained on.

    task: a task by name ("scratchpad", "countdown", "arithmetic", "reasoning-gym:NAME"), or data: a JSONL, CSV or
    Parquet file, a dataset directory, or a hub id "org/name".  Neither: the scratchpad task of the starter model.
    reward: a reward for sampled responses, e.g. "maths", "0.9*maths + 0.1*format:r1" or "rewards.py:score"; the
    task's own if empty.
    heldout: which prompts are kept for evaluation.  max_prompt: longest prompt in tokens (0: what the model holds).
    long_prompts, bad_rows, bad_rewards: "stop" names the offender, "skip" counts it and goes on without it.
    """

    task: str = ""
    data: str = ""
    split: str = ""
    limit: int = 0
    reward: str = ""
    fields: Fields = Fields()
    heldout: Heldout = Heldout()
    chat: Literal["auto", "always", "never"] = "auto"
    max_prompt: int = 0
    long_prompts: Literal["stop", "skip"] = "stop"
    bad_rows: Literal["stop", "skip"] = "stop"
    bad_rewards: Literal["stop", "skip"] = "stop"


@dataclass(frozen=True)
class OptimConfig:
    """AdamW. Fields left at None take the method's recommendation, else the value named here.

    learning_rate: 1e-6 without a recommendation.  schedule: after a linear warm-up over warmup_steps optimiser
    steps.  max_grad_norm: 0 switches clipping off.  skip_grad_norm: a step with a larger gradient norm is left out and
    counted; 0 never.
    """

    learning_rate: float | None = None
    weight_decay: float | None = None
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    warmup_steps: int | None = None
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: float | None = None
    skip_grad_norm: float | None = None


@dataclass(frozen=True)
class EvalConfig:
    """Held-out evaluation: before, after and every so many steps (0: only before and after).

    points: so many evaluations more, spread evenly between before and after, by steps or by the budget.  prompts: at most so many held-out prompts; samples per prompt; temperature: of the answers.
    """

    every: int = 0
    points: int = 0
    prompts: int = 256
    samples: int = 1
    temperature: float = 1.0
    before: bool = True
    after: bool = True


@dataclass(frozen=True)
class BudgetConfig:
    """Ends a run before its last step: after so many sampled tokens, or seconds of training. 0: no limit.

    The step that goes over is finished.  A method's own schedules end with the budget, by the steps that it will give
    at the present rate; the learning rate's still counts `steps`.
    """

    tokens: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.tokens < 0 or self.seconds < 0:
            raise ConfigError(f"a budget cannot be negative, got {self.tokens} tokens and {self.seconds} seconds")


@dataclass(frozen=True)
class SaveConfig:
    """Checkpoints: every so many steps (0: only at the end), and how many are kept (0: all)."""

    every: int = 0
    keep: int = 2


@dataclass(frozen=True)
class LogConfig:
    """completions: sampled responses written per step; tokens: how many of these token by token, best and worst first.

    track: trackers that also show the numbers (`unipo.track`).
    """

    completions: int = 8
    tokens: int = 2
    track: tuple[str, ...] = ()
    progress: bool = True


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    method: a name from `unipo methods`.  set: settings of its parts, e.g. {"objective.high": 0.28}.
    steps: batches sampled (or read); prompts: per batch.  old_logp: where the old policy's log-probs come from:
    "auto" recomputes only when the engine's are not exact or several updates follow.
    rows: responses written at once by the local engine.  resume: go on with the run in this directory.
    """

    method: str = "grpo"
    set: dict[str, Any] = field(default_factory=dict)
    plugin: tuple[str, ...] = ()
    steps: int = 100
    budget: BudgetConfig = BudgetConfig()
    prompts: int = 8
    seed: int = 0
    data: DataConfig = DataConfig()
    policy: PolicySpec = PolicySpec()
    sampling: Sampling = Sampling()
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    save: SaveConfig = SaveConfig()
    log: LogConfig = LogConfig()
    old_logp: Literal["auto", "behaviour", "recompute"] = "auto"
    rows: int = 128
    run: str = ""
    resume: bool = False

    def __post_init__(self) -> None:
        if self.steps < 0 or self.prompts < 1 or self.rows < 1:
            raise ConfigError(
                f"steps must be >= 0, prompts and rows >= 1; got {self.steps}, {self.prompts}, {self.rows}"
            )
        if self.data.task and self.data.data:
            raise ConfigError(f"give a task or data, not both: task={self.data.task!r}, data={self.data.data!r}")
        if not self.sampling.whole:
            raise ConfigError(
                "training samples from the whole distribution: temperature > 0, top_k = 0 and top_p = 1. Truncated "
                "sampling makes every importance ratio wrong by the kept mass; it is available for evaluation"
            )


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dictionaries, as written to a run's config.yaml."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(kind: type[Any], values: Mapping[str, Any], where: str = "") -> Any:
    """A config dataclass from nested dictionaries; unknown keys and wrong types are errors that name the key."""
    known = {f.name: f for f in fields(kind)}
    hints = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise unknown("key", f"{where}{key}", [f"{where}{n}" for n in known])
        given[name] = fitted(hints[name], value, f"{where}{name}")
    return kind(**given)


def fitted(hint: Any, value: Any, where: str) -> Any:
    """A plain value as the type a setting has; a wrong type is an error that names the setting."""
    if is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a mapping of its keys, got {value!r}")
        return from_dict(hint, value, f"{where}.")  # type: ignore[arg-type]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} must be one of {', '.join(map(str, args))}; got {value!r}")
        return value
    if origin is tuple:
        return _listed(args, value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a mapping such as {{name: value}}, got {value!r}")
        return dict(value)
    allowed = tuple(a for a in (args or (hint,)) if isinstance(a, type))
    if float in allowed and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-6 as text
        except ValueError:
            raise ConfigError(f"{where} must be a number, got {value!r}") from None
    plain = typing.get_origin(hint) or hint
    fits = isinstance(value, allowed) if allowed else isinstance(value, plain)
    if not fits or (isinstance(value, bool) and bool not in allowed):
        names = " or ".join("null" if a is type(None) else a.__name__ for a in allowed) or str(hint)
        raise ConfigError(f"{where} must be {names}, got {value!r} ({type(value).__name__})")
    return value


def _listed(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    """A list as a tuple; a lone text is a list of one, where any other would be taken apart letter by letter."""
    any_length = kinds[1:] == (Ellipsis,)
    items = [value] if any_length and isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise ConfigError(f"{where} must be a list, got {value!r}")
    if not any_length:
        return tuple(items)
    return tuple(fitted(kinds[0], item, f"{where}[{i}]") for i, item in enumerate(items))


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"optim.learning_rate": 1} -> {"optim": {"learning_rate": 1}}; the paths inside `set` stay as they are."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        head, *rest = str(key).split(".")
        path = [".".join(rest)] if head == "set" and rest else rest
        for name in reversed(path):
            value = {name: value}
        out = merged(out, {head: value})
    return out


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings laid over each other; a later value wins, sections are merged key by key."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            name = str(key).replace("-", "_")
            below = out.get(name)
            if isinstance(value, Mapping):
                value = merged(below if isinstance(below, Mapping) else {}, value)
            out[name] = value
    return out


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping a YAML file holds."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {str(path)!r}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, it holds {type(values).__name__}")
    return values
