"""The public checker passes our engine and finds each fault of a broken one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from tests.policy.models import make
from unipo.policy.model import Policy
from unipo.rollout.check import EngineFault, check_engine
from unipo.rollout.engine import Request, Rollout, Sampling
from unipo.rollout.local import LocalEngine

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [10]]


class Broken(LocalEngine):
    """Our engine with its answers spoilt."""

    spoil: Callable[[list[list[Rollout]], Sequence[Request]], list[list[Rollout]]]

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] | None = None
    ) -> list[list[Rollout]]:
        return self.spoil(super().generate(requests, sampling, progress), requests)


def each(change: Callable[[Rollout], Rollout]) -> Callable[..., list[list[Rollout]]]:
    return lambda groups, requests: [[change(r) for r in g] for g in groups]


def test_the_local_engine_holds_every_promise() -> None:
    policy = Policy(make("qwen3"), None)
    report = check_engine(LocalEngine(policy, 4, (5, 6, 7)), PROMPTS, score=policy.logp)
    assert report.gap is not None
    assert report.gap < 2e-5
    assert len(report.claims) == 7


FAULTS = {
    "got 2": lambda groups, requests: [g[:2] for g in groups],
    "log-probs": each(lambda r: replace(r, logp=r.logp[1:])),
    "not finite": each(lambda r: replace(r, logp=r.logp * float("nan"))),
    "cut off": each(lambda r: replace(r, truncated=True)),
    "exact": each(lambda r: replace(r, logp=r.logp - 0.1)),
    "other tokens": each(lambda r: replace(r, tokens=torch.randint_like(r.tokens, 97))),
    "which other prompts": lambda groups, requests: [
        [replace(r, tokens=(r.tokens + len(requests)) % 97) for r in g] for g in groups
    ],
    "very same tokens": each(lambda r: Rollout(r.tokens[:1] * 0, r.logp[:1], r.entropy[:1], False)),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_broken_promise_is_named(message: str) -> None:
    policy = Policy(make("qwen3"), None)
    engine = Broken(policy, 8, (5, 6, 7, 8, 9, 10, 11, 12, 13, 14))
    engine.spoil = FAULTS[message]  # type: ignore[method-assign]
    with pytest.raises(EngineFault, match=message):
        check_engine(engine, PROMPTS, score=policy.logp)
