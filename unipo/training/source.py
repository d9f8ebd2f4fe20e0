"""From prompts to a scored batch: sampling or reading, and asking the reward."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import DataError, RewardError
from unipo.layout import Layout
from unipo.method import Method
from unipo.policy.model import Policy
from unipo.rollout.engine import Engine, Request, Rollout, Sampling
from unipo.tasks.task import Reward, Sample, Scores
from unipo.training.continuous import step_columns
from unipo.training.prompts import Prompt
from unipo.training.ranks import Ranks


@dataclass(frozen=True)
class Collected:
    """A batch and what happened while it was made. parts: sum of each reward component, and over how many responses."""

    batch: Batch
    events: Counter[str]
    parts: dict[str, tuple[float, int]]
    generation_seconds: float = 0.0
    reward_seconds: float = 0.0
    sampled_tokens: int = 0


def prompt_seed(seed: int, draw: int) -> int:
    """Seed of the responses to the draw-th prompt of a run; the same on any number of ranks."""
    return (seed + 1) * 2_654_435_761 + draw


class Sampler:
    """Samples responses with an engine and scores them."""

    def __init__(
        self,
        policy: Policy,
        engine: Engine,
        reward: Reward,
        method: Method,
        sampling: Sampling,
        seed: int,
        ranks: Ranks,
    ) -> None:
        self.policy, self.engine, self.reward = policy, engine, reward
        self.group = method.source.group
        self.mixed = "demonstration" in method.source.adds
        self.solved = "solution" in method.source.adds
        self.sampling, self.seed, self.ranks = sampling, seed, ranks
        self.begin(method)

    def begin(self, method: Method) -> None:
        """What a sampler that keeps work between steps needs besides. method: with the source it was chosen for."""

    def room(self, wanted: int) -> int:
        """How many prompts to draw for a step of `wanted`."""
        return wanted

    def state(self) -> Any:
        """Unfinished work that a resumed run goes on with; None for a source without any."""
        return None

    def load(self, state: Any) -> None:
        """Take over what `state` gave."""

    def __call__(self, prompts: Sequence[Prompt], progress: Callable[[int], None] | None = None) -> Collected:
        """Sample a group for each prompt, every rank its share; all ranks return the same batch."""
        start = time.perf_counter()
        shares = self.ranks.share([1] * len(prompts))
        mine = shares[self.ranks.rank]
        requests = [
            Request(p.ids, self.group, prompt_seed(self.seed, p.draw), images=p.pixels)
            for p in (prompts[i] for i in mine)
        ]
        groups = self.engine.generate(requests, self.sampling, progress) if requests else []
        generated = time.perf_counter()
        scored = [score_groups(self.policy, self.reward, [prompts[i] for i in mine], groups)] if requests else []
        rewarded = time.perf_counter()
        everyone = self.ranks.gather_objects((mine, groups, scored))
        ordered: list[list[Rollout]] = [[] for _ in prompts]
        texts: list[list[str]] = [[] for _ in prompts]
        scores: list[list[dict[str, Any]]] = [[] for _ in prompts]
        events: Counter[str] = Counter()
        for indices, rank_groups, rank_scores in everyone:
            for place, i in enumerate(indices):
                ordered[i] = rank_groups[place]
                texts[i], scores[i] = rank_scores[0].texts[place], rank_scores[0].scores[place]
            for item in rank_scores:
                events.update(item.events)
        parts = part_sums([s for group in scores for s in group])
        sampled = sum(len(r.tokens) for g in ordered for r in g)
        shown = add_demonstrations(prompts, ordered, texts, scores) if self.mixed else None
        batch = rollout_batch(prompts, ordered, texts, scores, self.policy.updates)
        if self.solved:
            solutions = [p.example.responses[0].text if p.example.responses else None for p in prompts]
            batch = batch.with_columns(None, solution=solutions)
        if shown is not None:
            batch = batch.with_columns(None, demonstration=shown)
        return Collected(
            batch,
            events,
            parts,
            generated - start,
            rewarded - generated,
            sampled,
        )


@dataclass(frozen=True)
class Scored:
    """texts and marks (total, score, extracted, parts) by prompt and response."""

    texts: list[list[str]]
    scores: list[list[dict[str, Any]]]
    events: dict[str, int]


def score_groups(policy: Policy, reward: Reward, prompts: Sequence[Prompt], groups: list[list[Rollout]]) -> Scored:
    """Decode responses and ask the reward for one mark each."""
    decode = policy.tokenizer.decode
    samples: list[Sample] = []
    for prompt, group in zip(prompts, groups, strict=True):
        shown = decode(list(prompt.ids))
        for r in group:
            ids, example = r.tokens.tolist(), prompt.example
            samples.append(Sample(shown, policy.written(ids), example.answer, example.row, len(ids), r.truncated))
    scores = reward(samples)
    check_scores(scores, samples, reward.name)
    flat = [
        {
            "total": scores.total[i],
            "score": scores.score[i],
            "extracted": scores.extracted[i] if scores.extracted else None,
            "parts": {name: values[i] for name, values in scores.parts.items()},
        }
        for i in range(len(samples))
    ]
    texts = [s.text for s in samples]
    cut: tuple[list[list[str]], list[list[dict[str, Any]]]] = ([], [])
    at = 0
    for group in groups:
        cut[0].append(texts[at : at + len(group)])
        cut[1].append(flat[at : at + len(group)])
        at += len(group)
    return Scored(cut[0], cut[1], dict(scores.events))


def check_scores(scores: Scores, samples: Sequence[Sample], name: str) -> None:
    """One finite number (or None) per sample, or a RewardError that shows the sample."""
    for label, values in (("total", scores.total), ("score", scores.score), *scores.parts.items()):
        if len(values) != len(samples):
            raise RewardError(
                f"reward {name!r} returned {len(values)} values of {label!r} for {len(samples)} responses"
            )
    for i, value in enumerate(scores.total):
        if value is not None and not -float("inf") < value < float("inf"):
            s = samples[i]
            raise RewardError(
                f"reward {name!r} returned {value} for response {i}.\n  prompt: {s.prompt[-300:]!r}\n"
                f"  response: {s.text[:300]!r}\nReturn a finite number, or None to leave the response out"
            )


def add_demonstrations(
    prompts: Sequence[Prompt],
    groups: list[list[Rollout]],
    texts: list[list[str]],
    scores: list[list[dict[str, Any]]],
) -> Tensor:
    """Put each prompt's first response of the data after its sampled ones, unscored, in place. [S] bool: is one."""
    flags: list[bool] = []
    for prompt, group, said, marks in zip(prompts, groups, texts, scores, strict=True):
        flags += [False] * len(group)
        if not prompt.responses:
            continue
        nothing = torch.zeros(len(prompt.responses[0]), dtype=group[0].logp.dtype)
        group.append(Rollout(torch.tensor(prompt.responses[0], dtype=torch.int64), nothing, nothing, False))
        said.append(prompt.example.responses[0].text)
        marks.append({"total": None, "score": None, "extracted": None, "parts": {}})
        flags.append(True)
    return torch.tensor(flags, dtype=torch.bool)


def rollout_batch(
    prompts: Sequence[Prompt],
    groups: list[list[Rollout]],
    texts: list[list[str]],
    scores: list[list[dict[str, Any]]],
    version: int,
) -> Batch:
    """The batch of a sampling round, which may be empty."""
    flat = [r for g in groups for r in g]
    marks = [s for g in scores for s in g]
    layout = Layout.of([len(r.tokens) for r in flat], [len(g) for g in groups], [len(p.ids) for p in prompts])
    tokens = _joined([r.tokens for r in flat], torch.int64)
    first = [p.draw for p in prompts]
    ids = [d * 1_000_000 + j for d, g in zip(first, groups, strict=True) for j in range(len(g))]
    return Batch.of(
        layout,
        **image_column(prompts),
        context=torch.tensor([t for p in prompts for t in p.ids], dtype=torch.int64),
        tokens=tokens,
        trainable=torch.ones(len(tokens), dtype=torch.bool),
        behaviour_logp=_joined([r.logp for r in flat], torch.float32),
        behaviour_entropy=_joined([r.entropy for r in flat], torch.float32),
        taped=_joined([torch.full_like(r.tokens, -1) if r.taped is None else r.taped for r in flat], torch.int64),
        version=torch.full((len(tokens),), version, dtype=torch.int64),
        truncated=torch.tensor([r.truncated for r in flat], dtype=torch.bool),
        sample_id=torch.tensor(ids, dtype=torch.int64),
        prompt_id=torch.tensor([p.example.id for p in prompts], dtype=torch.int64),
        prompt=[p.said for p in prompts],
        row=[dict(p.example.row) for p in prompts],
        answer=[p.example.answer for p in prompts],
        text=[t for g in texts for t in g],
        extracted=[s["extracted"] for s in marks],
        reward=torch.tensor([0.0 if s["total"] is None else float(s["total"]) for s in marks], dtype=torch.float64),
        score=torch.tensor([0.0 if s["score"] is None else float(s["score"]) for s in marks], dtype=torch.float64),
        scored=torch.tensor([s["total"] is not None for s in marks], dtype=torch.bool),
        reward_parts=[dict(s["parts"]) for s in marks],
        **{name: torch.cat([r.columns[name] for r in flat]) for name in (flat[0].columns if flat else ())},
    )


def image_column(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """The column `images`, where the data has images."""
    found = [p.pixels for p in prompts]
    return {} if any(x is None for x in found) else {"images": found}


def _joined(pieces: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(list(pieces)) if pieces else torch.zeros(0, dtype=dtype)


def part_sums(marks: list[dict[str, Any]]) -> dict[str, tuple[float, int]]:
    """(sum, count) of every component of the reward, over the responses that have it."""
    names = dict.fromkeys(name for m in marks for name in m["parts"])
    sums = {}
    for name in names:
        values = [m["parts"][name] for m in marks if m["parts"].get(name) is not None]
        if values:
            sums[name] = (float(sum(values)), len(values))
    return sums


class Reader:
    """Reads the responses that came with the data."""

    def __init__(self, method: Method) -> None:
        self.method = method

    def room(self, wanted: int) -> int:
        """How many prompts to draw for a step of `wanted`."""
        return wanted

    def state(self) -> Any:
        """None: there is no unfinished work."""
        return None

    def load(self, state: Any) -> None:
        """Nothing is kept between steps."""

    def __call__(self, prompts: Sequence[Prompt], progress: Callable[[int], None] | None = None) -> Collected:
        return Collected(offline_batch(prompts, "preference" in self.method.source.adds), Counter(), {})


def offline_batch(prompts: Sequence[Prompt], ranked: bool) -> Batch:
    """Demonstrations or ranked responses as a batch; every response token is trained."""
    for p in prompts:
        if not p.responses:
            raise DataError(
                f"example {p.example.id} has no responses to learn from; this method needs them in the data"
            )
    chosen = [p.responses if ranked else p.responses[:1] for p in prompts]
    layout = Layout.of([len(r) for g in chosen for r in g], [len(g) for g in chosen], [len(p.ids) for p in prompts])
    tokens = torch.tensor([t for g in chosen for r in g for t in r], dtype=torch.int64)
    batch = Batch.of(
        layout,
        **image_column(prompts),
        context=torch.tensor([t for p in prompts for t in p.ids], dtype=torch.int64),
        tokens=tokens,
        trainable=torch.ones(len(tokens), dtype=torch.bool),
        sample_id=torch.tensor(
            [p.draw * 1_000_000 + j for p, g in zip(prompts, chosen, strict=True) for j in range(len(g))]
        ),
        prompt_id=torch.tensor([p.example.id for p in prompts], dtype=torch.int64),
        prompt=[p.said for p in prompts],
        row=[dict(p.example.row) for p in prompts],
        answer=[p.example.answer for p in prompts],
        text=[p.example.responses[j].text for p, g in zip(prompts, chosen, strict=True) for j in range(len(g))],
    )
    if prompts[0].steps:
        batch = batch.with_columns(None, **step_columns([p.steps for p in prompts]))
    if not ranked:
        return batch
    ranks = [p.example.responses[j].preference for p, g in zip(prompts, chosen, strict=True) for j in range(len(g))]
    return batch.with_columns(None, preference=torch.tensor(ranks, dtype=torch.float64))
