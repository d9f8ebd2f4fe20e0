"""`check_engine`: what any engine must hold before a run may trust it. For people who write their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import UnipoError
from unipo.layout import Layout
from unipo.rollout.engine import Engine, Request, Rollout, Sampling

Score = Callable[[Batch], Tensor]


class EngineFault(UnipoError):
    """An engine broke a promise every engine makes."""


@dataclass(frozen=True)
class EngineReport:
    """claims: what was found to hold. gap: largest |engine - trainer| log-prob, None if no scorer was given."""

    claims: tuple[str, ...]
    gap: float | None = None

    def __str__(self) -> str:
        return "\n".join(f"ok  {claim}" for claim in self.claims)


def check_engine(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    max_tokens: int = 16,
    samples: int = 3,
    score: Score | None = None,
    tolerance: float = 1e-3,
) -> EngineReport:
    """Run an engine on a few prompts of different length and check what comes back.

    prompts: at least two, as token ids.  score: log-probs of a batch under the weights the engine should have
    (`Policy.logp`), for engines that call themselves exact to `tolerance` nats.
    Raises EngineFault naming the first promise that is broken.
    """
    if len(prompts) < 2:
        raise EngineFault("check_engine needs at least two prompts, to see whether they disturb each other")
    requests = [Request(tuple(p), samples, 1000 + i) for i, p in enumerate(prompts)]
    sampling = Sampling(max_tokens=max_tokens)
    groups = engine.generate(requests, sampling)
    claims = [_shapes(requests, groups, max_tokens), _numbers(groups)]
    _require(
        _same(groups, engine.generate(requests, sampling)), "the same requests with the same seeds gave other tokens"
    )
    claims.append("the same seeds give the same tokens")
    alone = [engine.generate([request], sampling)[0] for request in requests]
    _require(_same(groups, alone), "a prompt's responses depend on which other prompts are in the call")
    claims.append("responses do not depend on their neighbours")
    other = [Request(r.prompt, r.n, r.seed + 7) for r in requests]
    _require(not _same(groups, engine.generate(other, sampling)), "other seeds gave the very same tokens everywhere")
    claims.append("other seeds give other tokens")
    greedy = engine.generate(requests, Sampling(temperature=0.0, max_tokens=max_tokens))
    _require(
        all(torch.equal(g[0].tokens, r.tokens) for g in greedy for r in g), "greedy responses to one prompt differ"
    )
    claims.append("greedy responses to one prompt agree")
    gap = None if score is None else _gap(requests, groups, score)
    if gap is not None and engine.exact:
        _require(
            gap <= tolerance, f"its log-probs differ from the trainer's by up to {gap:.2g} nats, it claims to be exact"
        )
        claims.append(f"its log-probs are the trainer's within {gap:.2g} nats")
    return EngineReport(tuple(claims), gap)


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise EngineFault(complaint)


def _shapes(requests: Sequence[Request], groups: list[list[Rollout]], max_tokens: int) -> str:
    _require(len(groups) == len(requests), f"{len(requests)} requests, {len(groups)} answers")
    for i, (request, group) in enumerate(zip(requests, groups, strict=True)):
        _require(len(group) == request.n, f"request {i} asked for {request.n} responses, got {len(group)}")
        for r in group:
            n = len(r.tokens)
            _require(1 <= n <= max_tokens, f"request {i}: a response of {n} tokens under a budget of {max_tokens}")
            _require(len(r.logp) == n == len(r.entropy), f"request {i}: {n} tokens, {len(r.logp)} log-probs")
            _require(not r.truncated or n == max_tokens, f"request {i}: cut off after {n} of {max_tokens} tokens")
    return "one response per sample, one log-prob per token, within the budget"


def _numbers(groups: list[list[Rollout]]) -> str:
    logp = torch.cat([r.logp for g in groups for r in g])
    entropy = torch.cat([r.entropy for g in groups for r in g])
    _require(bool(torch.isfinite(logp).all() and (logp <= 1e-5).all()), "a log-prob is positive or not finite")
    _require(bool(torch.isfinite(entropy).all() and (entropy >= -1e-4).all()), "an entropy is negative or not finite")
    return "log-probs and entropies are possible numbers"


def _same(a: list[list[Rollout]], b: list[list[Rollout]]) -> bool:
    return all(torch.equal(x.tokens, y.tokens) for g, h in zip(a, b, strict=True) for x, y in zip(g, h, strict=True))


def _gap(requests: Sequence[Request], groups: list[list[Rollout]], score: Score) -> float:
    """Largest difference to the trainer's log-probs of the same tokens."""
    flat = [r for g in groups for r in g]
    layout = Layout.of([len(r.tokens) for r in flat], [r.n for r in requests], [len(r.prompt) for r in requests])
    tokens = torch.cat([r.tokens for r in flat])
    context = torch.tensor([t for r in requests for t in r.prompt], dtype=torch.int64)
    batch = Batch.of(layout, context=context, tokens=tokens, trainable=torch.ones(len(tokens), dtype=torch.bool))
    return float((torch.cat([r.logp for r in flat]) - score(batch)).abs().max())
