"""What a run does differently where responses are continuous tokens: the kind of policy, the engine, soft targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unipo.errors import DataError
from unipo.parts.continuous import ContinuousOnPolicy, SoftDemonstrations, trace_shares
from unipo.parts.source import Source
from unipo.policy.continuous import ContinuousPolicy
from unipo.policy.model import Policy
from unipo.rollout.continuous import ContinuousEngine
from unipo.rollout.engine import Engine
from unipo.rollout.local import LocalEngine
from unipo.tasks.task import Example, Response
from unipo.training.prompts import Prompt

Steps = Sequence[Sequence[tuple[int, float]]]


def policy_kind(source: Source) -> Callable[..., Policy]:
    """What makes the policy from a model: one that scores continuous tokens where the source has them."""
    if isinstance(source, ContinuousOnPolicy | SoftDemonstrations):
        return partial(ContinuousPolicy, step=source.step)
    return Policy


def engine_for(policy: Policy, source: Source, rows: int) -> Engine:
    """The engine that samples for this source."""
    if isinstance(source, ContinuousOnPolicy) and isinstance(policy, ContinuousPolicy):
        return ContinuousEngine(policy, source.steps, rows)
    return LocalEngine(policy, rows)


@dataclass
class StepEncoder:
    """Prompts with a distribution over tokens for each step of their response, as token ids.

    They are the shares of the best `traces` (0: all) of `row["traces"]`, lists of token texts, or else
    `row["steps"]`, a list of {token text: probability}.  The response's own token at each step is the likeliest one,
    the first of equals; the last step must be one token.  window: positions of the model.
    """

    tokenizer: Any
    window: int
    traces: int = 0
    _known: dict[str, int] = field(default_factory=dict)

    def __call__(self, example: Example, ids: tuple[int, ...]) -> Prompt:
        """Raises DataError: no steps, too few traces, a text that is not one token, probabilities that do not add up
        to 1, no room."""
        given = self._taught(example)
        if len(ids) + len(given) > self.window:
            raise DataError(
                f"example {example.id} needs {len(ids) + len(given)} positions, the model has {self.window}"
            )
        steps = tuple(self._step(step, f"example {example.id}, step {t + 1}") for t, step in enumerate(given))
        if len(steps[-1]) != 1:
            raise DataError(f"example {example.id}: the last step is an ordinary token, but {len(steps[-1])} are given")
        heaviest = tuple(max(step, key=lambda pair: pair[1])[0] for step in steps)
        shown = Response(self.tokenizer.decode(list(heaviest)))
        return Prompt(replace(example, responses=(shown,)), ids, (heaviest,), steps=steps)

    def _taught(self, example: Example) -> Sequence[Mapping[str, float]]:
        """The distributions that the data row holds, or those of its traces."""
        found: Sequence[Sequence[str]] = example.row.get("traces") or ()
        ready: Sequence[Mapping[str, float]] = example.row.get("steps") or ()
        if not found and (self.traces or not ready):
            raise DataError(
                f"example {example.id} has no row['traces'] (nor row['steps'] with source.traces=0), the chains of states "
                "this method learns from; the task mnns has them"
            )
        if not found:
            return ready
        lengths = sorted({len(trace) for trace in found})
        if len(lengths) > 1 or len(found) < self.traces or not lengths[0]:
            raise DataError(
                f"example {example.id} has {len(found)} traces of {lengths} steps; source.traces={self.traces} needs so "
                "many at least, all of one length"
            )
        return trace_shares(found[: self.traces or None])

    def _step(self, step: Mapping[str, float], where: str) -> tuple[tuple[int, float], ...]:
        for text, probability in step.items():
            if not probability > 0:
                raise DataError(f"{where}: the probability of {text!r} is {probability}; leave impossible tokens out")
        found = tuple((self._id(text, where), float(probability)) for text, probability in step.items())
        if abs(math.fsum(p for _, p in found) - 1) > 1e-6 or len({i for i, _ in found}) != len(found):
            raise DataError(f"{where}: the probabilities of distinct tokens must add up to 1, got {dict(step)}")
        return found

    def _id(self, text: str, where: str) -> int:
        if text not in self._known:
            token = self.tokenizer.encode(text, add_special_tokens=False)
            if len(token) != 1 or token[0] == getattr(self.tokenizer, "unk_token_id", None):
                raise DataError(f"{where}: {text!r} is not one token of this model's vocabulary")
            self._known[text] = int(token[0])
        return self._known[text]


def step_columns(responses: Sequence[Steps]) -> dict[str, Tensor]:
    """The step columns of given distributions, one response after the other. Empty slots repeat the first id."""
    rows = [step for response in responses for step in response]
    width = max(len(step) for step in rows)
    ids = [[i for i, _ in step] + [step[0][0]] * (width - len(step)) for step in rows]
    weights = [[math.log(p) for _, p in step] + [-math.inf] * (width - len(step)) for step in rows]
    return {"step_ids": torch.tensor(ids), "step_log_weights": torch.tensor(weights, dtype=torch.float64)}
