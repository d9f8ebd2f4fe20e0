"""From a configuration to the objects of a run; everything that can be wrong is found here, before training."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from unipo.chance import wrapped
from unipo.errors import ConfigError, DataError
from unipo.method import Method
from unipo.parts.continuous import SoftDemonstrations
from unipo.policy.model import Policy, load_policy
from unipo.policy.spec import PolicySpec
from unipo.policy.value import ValueModel
from unipo.registry import get_method, load_plugin
from unipo.rollout.engine import Engine
from unipo.starter import shapes_path, starter_path
from unipo.tasks.chat import encode_prompts, encode_response
from unipo.tasks.dataset import Heldout
from unipo.tasks.pictures import Pictures
from unipo.tasks.registry import resolve_task
from unipo.tasks.task import Example, Reward, Task
from unipo.training.config import DataConfig, TrainConfig
from unipo.training.continuous import StepEncoder, engine_for, policy_kind
from unipo.training.defaults import SCRATCHPAD, SHAPES, STARTER, trained_on
from unipo.training.optim import resolve_optim
from unipo.training.prompts import Prompt
from unipo.training.setting import changed


@dataclass(frozen=True)
class Setup:
    """Everything a run needs. events: rows and prompts left out, by reason.

    made_in_python: which of "task" and "reward" were given as objects, and so do not stand in `config`.
    """

    config: TrainConfig
    method: Method
    policy: Policy
    engine: Engine
    task: Task
    reward: Reward | None
    train: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]
    events: Mapping[str, int] = field(default_factory=dict)
    value: ValueModel | None = None
    made_in_python: tuple[str, ...] = ()


def resolve_method(name: str, changes: Mapping[str, Any] | None = None, plugins: Sequence[str] = ()) -> Method:
    """A method of the catalogue with some settings changed; plugins are loaded first."""
    for path in plugins:
        load_plugin(path)
    return changed(get_method(name), changes or {})


def build(config: TrainConfig, reward: Any = None, task: Task | None = None) -> Setup:
    """Load and check everything. reward, task: objects given from Python instead of names in the configuration."""
    # Adapters start at random, and an in-process reward may use the global generators.
    torch.manual_seed(wrapped(config.seed))
    random.seed(config.seed)
    trained = trained_on(config.policy.model, config.data.task, config.data.data)
    method, config = resolved(config)
    method = method.bound_to(config.sampling.max_tokens)
    made = tuple(name for name, given in (("task", task), ("reward", reward)) if given not in (None, ""))
    if task is None:
        config = config if config.data.data else replace(config, data=replace(config.data, task=trained))
        task = load_task(config.data, method)
    chosen = _reward(method, config.data, reward, task)
    policy = load_policy(config.policy, config.sampling.temperature, policy_kind(method.source))
    if method.needs_reference():
        policy.make_reference()
    value = None
    if method.value is not None:
        value = ValueModel(policy, method.value.shared, method.value.model and model_path(method.value.model))
    events: Counter[str] = Counter(getattr(task, "events", {}))
    room = prompt_room(config, method, policy)
    train = encode_all(policy, task.train, config.data, room, method, events)
    heldout = encode_all(policy, task.heldout[: config.eval.prompts], config.data, room, method, events)
    _check_evidence(method, train)
    _count_demonstrations(method, train, events)
    engine = engine_for(policy, method.source, config.rows)
    return Setup(config, method, policy, engine, task, chosen, train, heldout, dict(events), value, made)


def resolved(config: TrainConfig) -> tuple[Method, TrainConfig]:
    """The method that is named, and the configuration with everything it left to the method, or called by a short name."""
    method = resolve_method(config.method, config.set, config.plugin)
    spec = _with_reference(replace(config.policy, model=model_path(config.policy.model)), method)
    return method, replace(config, policy=spec, optim=resolve_optim(config.optim, method.defaults))


def _with_reference(spec: PolicySpec, method: Method) -> PolicySpec:
    """The kind of reference that the method recommends, unless the user named one."""
    advised = {k: method.defaults[k] for k in ("reference", "reference_decay") if k in method.defaults}
    return replace(spec, **advised) if spec.reference == "auto" else spec


def model_path(name: str) -> str:
    """A model's directory or hub id; "" and "starter" (unless a directory is called so) are the shipped model, "shapes"
    the shipped one that sees."""
    if name and (name not in (STARTER, SHAPES) or Path(name).is_dir()):
        return name
    return str(shapes_path() if name == SHAPES else starter_path())


def load_task(data: DataConfig, method: Method) -> Task:
    """The task the configuration names; offline methods get responses, by the kind their source needs."""
    kind = "auto" if method.online else ("preference" if "preference" in method.source.adds else "demonstration")
    if not data.data:
        options: dict[str, Any] = {}
        name = data.task or SCRATCHPAD
        if name.partition("?")[0] == SCRATCHPAD and method.source.reads_responses:
            options["responses"] = "pair" if kind == "preference" else "demonstration"
        return resolve_task(name, options)
    from unipo.tasks.dataset import dataset_task

    heldout = data.heldout if data.heldout.asked else Heldout()
    return dataset_task(
        data.data,
        fields=data.fields,
        kind=kind,  # type: ignore[arg-type]
        split=data.split or None,
        limit=data.limit or None,
        heldout=heldout,
        on_bad_row=data.bad_rows,
    )


def _reward(method: Method, data: DataConfig, given: Any, task: Task) -> Reward | None:
    from unipo.rewards import resolve_reward, with_failure_policy

    if not method.online:
        if given is not None or data.reward:
            raise ConfigError(f"{method.name} learns from responses in the data and uses no reward; leave it out")
        return None
    spec = given if given is not None else data.reward
    if spec is not None and spec != "":
        reward = resolve_reward(spec)
        # A reward made in Python with its own policy keeps it unless the run asks for skipping.
        return with_failure_policy(reward, "skip") if data.bad_rewards == "skip" else reward
    if task.reward is None:
        raise ConfigError(
            f"{method.name} needs a reward for {task.name!r}: --data.reward numbers, --data.reward maths, "
            "or --data.reward rewards.py:function"
        )
    return task.reward


def prompt_room(config: TrainConfig, method: Method, policy: Policy) -> int:
    """Longest prompt in tokens."""
    window = policy.context_window - (config.sampling.max_tokens if method.online else 0)
    if window < 1:
        raise ConfigError(
            f"max_tokens {config.sampling.max_tokens} leaves no room for a prompt in a context of "
            f"{policy.context_window} positions; lower --sampling.max-tokens"
        )
    return min(window, config.data.max_prompt) if config.data.max_prompt else window


def encode_all(
    policy: Policy, examples: Sequence[Example], data: DataConfig, room: int, method: Method, events: Counter[str]
) -> tuple[Prompt, ...]:
    """Prompts (and, offline, their responses) as token ids; what does not fit is named or counted."""
    if not examples:
        return ()
    processor = policy.processor if any(e.images for e in examples) else None
    encoded = encode_prompts(policy.tokenizer, examples, data.chat, room, data.long_prompts, processor)
    if processor is not None and policy_kind(method.source) is not Policy:
        raise ConfigError(f"{method.name} feeds continuous tokens, which cannot yet follow prompts with images")
    if processor is not None:
        policy.check_sight(next(e for e in encoded.examples if e.images))
    shown = {
        id(e): None if processor is None else Pictures(e.images, processor.image_processor) for e in encoded.examples
    }
    events.update(encoded.events)
    strange = getattr(policy.tokenizer, "unk_token_id", None)
    if strange is not None and any(strange in ids for ids in encoded.ids):
        events["prompt with tokens the model does not know (kept)"] += sum(strange in ids for ids in encoded.ids)
    if not method.source.reads_responses:
        pairs = zip(encoded.examples, encoded.ids, strict=True)
        return tuple(Prompt(e, tuple(ids), images=shown[id(e)]) for e, ids in pairs)
    if isinstance(method.source, SoftDemonstrations):
        encode = StepEncoder(policy.tokenizer, policy.context_window, method.source.traces)
        return tuple(encode(e, tuple(ids)) for e, ids in zip(encoded.examples, encoded.ids, strict=True))
    compared = max(term.objective.compares for term in method.terms)
    prompts: list[Prompt] = []
    for example, ids in zip(encoded.examples, encoded.ids, strict=True):
        if not example.responses and not method.online:
            raise DataError(f"example {example.id} has no responses, which {method.name} learns from")
        if compared and len(example.responses) != compared:
            raise DataError(
                f"example {example.id} has {len(example.responses)} ranked responses, {method.name} compares {compared}: "
                "leave the others out"
            )
        responses = tuple(
            tuple(encode_response(policy.tokenizer, r.text, example, ids, data.chat, processor))
            for r in example.responses
        )
        longest = len(ids) + max((len(r) for r in responses), default=0)
        if longest > policy.context_window:
            if data.long_prompts == "stop":
                raise DataError(
                    f"example {example.id} needs {longest} positions, the model has {policy.context_window}: "
                    "pass --data.long-prompts skip to leave such rows out, counted"
                )
            events["response too long"] += 1
            continue
        prompts.append(Prompt(example, tuple(ids), responses, images=shown[id(example)]))
    if not prompts:
        raise DataError("no example fits the model's context window")
    return tuple(prompts)


def _check_evidence(method: Method, prompts: Sequence[Prompt]) -> None:
    if "evidence_logp" not in method.needs:
        return
    without = [p.example.id for p in prompts if p.example.answer is None]
    if without:
        raise DataError(
            f"{method.name} shows the right answer to the model, but {len(without)} of {len(prompts)} prompts have none "
            f"(first: row {without[0]}); map it with --data.fields.answer, or use grpo"
        )


def _count_demonstrations(method: Method, prompts: Sequence[Prompt], events: Counter[str]) -> None:
    """A method that samples can do without the demonstration of some prompts, not of all."""
    if not method.online or not method.source.reads_responses:
        return
    without = sum(not p.responses for p in prompts)
    if without == len(prompts):
        raise DataError(
            f"{method.name} learns from demonstrations too, but no prompt has one; map the field with "
            "--data.fields.response"
        )
    if without:
        events["prompt without a demonstration (kept)"] += without


def end_report(events: Mapping[str, int]) -> str:
    """One line about what was left out, or nothing."""
    return ", ".join(f"{count} x {name}" for name, count in sorted(events.items()))
