"""What `eval` and `generate` share: a model to sample from, prompts as token ids, and how much room they leave."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unipo.command.output import note
from unipo.errors import ConfigError
from unipo.method import Method
from unipo.policy.model import Policy, load_policy
from unipo.policy.spec import Compute, PolicySpec
from unipo.registry import get_method
from unipo.tasks.task import Example
from unipo.training.config import DataConfig, TrainConfig, from_dict, read_mapping
from unipo.training.continuous import policy_kind
from unipo.training.prompts import Prompt
from unipo.training.saved import Saved, find_saved
from unipo.training.setup import encode_all, end_report, model_path, resolve_method

# Longest response where none is asked for and the model has room for it.
MAX_TOKENS = 512


def load(model: str, compute: Compute = "float32") -> Policy:
    """The model to sample from, on the device there is. model: of a run, its newest checkpoint."""
    saved = find_saved(model)
    return load_policy(PolicySpec(model=str(saved.model) if saved else model_path(model), compute=compute))


def of_run(saved: Saved | None) -> TrainConfig | None:
    """How the run was configured that a model comes from."""
    if saved is None or saved.run is None:
        return None
    config: TrainConfig = from_dict(TrainConfig, read_mapping(saved.run / "config.yaml"))
    return config


def made_in_python(saved: Saved | None) -> list[str]:
    """Which of "task" and "reward" a run was given as objects, so that its configuration does not name them."""
    file = saved.run / "method.json" if saved is not None and saved.run is not None else None
    if file is None or not file.is_file():
        return []
    found: list[str] = json.loads(file.read_text(encoding="utf-8")).get("made_in_python", [])
    return found


def plugins(given: Sequence[str], own: Sequence[str]) -> list[str]:
    """The files to be loaded: a run's own, and those given; one of the same name takes the place of the run's."""
    names = {Path(p).name for p in given}
    return [*(p for p in own if Path(p).name not in names), *given]


def refuse_continuous(saved: Saved | None, plugin: Sequence[str] = ()) -> None:
    """Raise ConfigError for a run whose model writes continuous tokens: sampling plain ones asks it something else.

    plugin: files given, which take the place of the run's own.  Of the run's settings only those are read that decide
    it, so that a run with others that are retired by now can be sampled.
    """
    if saved is None or saved.run is None:
        return
    written = read_mapping(saved.run / "config.yaml")
    deciding: dict[str, Any] = {name: written[name] for name in ("method", "set", "plugin") if name in written}
    try:
        run: TrainConfig = from_dict(TrainConfig, deciding)
        method = resolve_method(run.method, run.set, plugins(plugin, run.plugin))
    except Exception as error:  # a plugin may raise anything
        note(f"{saved.run}: cannot tell whether its responses are continuous tokens ({error}); taken for plain ones")
        return
    if policy_kind(method.source) is not Policy:
        raise ConfigError(
            f"{saved.run} was trained with {method.name}, whose responses are continuous tokens; this command samples "
            f"plain ones. The run's own evaluations stand in {saved.run}/evaluations.jsonl"
        )


def sampler() -> Method:
    """A method that samples, for set-up code that asks what kind of data is wanted."""
    return get_method("grpo")


def encode(
    policy: Policy, examples: Sequence[Example], data: DataConfig, max_tokens: int
) -> tuple[tuple[Prompt, ...], int, str]:
    """(prompts, longest response, what was left out). max_tokens 0: what the longest prompt leaves, at most 512."""
    room = policy.context_window - max(1, max_tokens)
    if room < 1:
        raise ConfigError(
            f"--max-tokens {max_tokens} leaves no room for a prompt in a context of {policy.context_window} positions"
        )
    events: Counter[str] = Counter()
    prompts = encode_all(
        policy, examples, data, min(room, data.max_prompt) if data.max_prompt else room, sampler(), events
    )
    longest = max(len(p.ids) for p in prompts)
    return prompts, max_tokens or min(MAX_TOKENS, policy.context_window - longest), end_report(events)
