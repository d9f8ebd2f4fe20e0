"""Responses sampled on from the middle, and what the reward says of them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.chance import wrapped
from unipo.parts.part import Continuations
from unipo.policy.model import Policy
from unipo.rollout.engine import Engine, Request, Rollout, Sampling
from unipo.rollout.sampling import mix
from unipo.tasks.task import Example, Reward
from unipo.training.prompts import Prompt
from unipo.training.ranks import Ranks
from unipo.training.source import prompt_seed, score_groups


def branch_seed(seed: int, sample_id: int, place: int) -> int:
    """Seed of responses that leave sample `sample_id` before its token number `place`; never that of the sample."""
    own, run = (mix(torch.tensor(wrapped(n))) for n in (sample_id * 65_537 + place + 1, prompt_seed(seed, 0)))
    return int(own ^ run) % 2**40


@dataclass(frozen=True)
class Continuer:
    """Continues prefixes with an engine and scores what comes of them; every rank writes its share."""

    policy: Policy
    engine: Engine
    reward: Reward
    sampling: Sampling
    seed: int
    ranks: Ranks

    def __call__(self, batch: Batch, at: Tensor, n: int) -> tuple[Continuations, int, Counter[str]]:
        """(rewards of n continuations of the prefix before each token `at` [K], tokens sampled, events of scoring)."""
        layout = batch.layout
        requests, prompts = [], []
        for t in at.tolist():
            s, p = int(layout.token_seq[t]), int(layout.token_prompt[t])
            start, context = int(layout.seq_starts[s]), int(layout.context_starts[p])
            ids = tuple(batch.context[context : context + int(layout.context_lengths[p])].tolist())
            shown = batch.images[p] if batch.has("images") else None
            seed = branch_seed(self.seed, int(batch.sample_id[s]), t - start)
            requests.append(Request(ids, n, seed, batch.tokens[start:t].tolist(), images=shown))
            prompts.append(Prompt(Example("", batch.answer[p], row=batch.row[p]), ids))
        mine = self.ranks.share([1] * len(requests))[self.ranks.rank]
        reward = torch.full((len(requests), n), math.nan, dtype=torch.float64)
        truncated = torch.zeros(len(requests), n, dtype=torch.bool)
        sampled, events = 0, Counter[str]()
        for own, happened in self.ranks.gather_objects(self._own(requests, prompts, mine)):
            events.update(happened)
            for i, totals, cut, tokens in own:
                reward[i] = torch.tensor(
                    [math.nan if total is None else float(total) for total in totals], dtype=torch.float64
                )
                truncated[i] = torch.tensor(cut)
                sampled += tokens
        return Continuations(reward, truncated), sampled, events

    def _own(
        self, requests: list[Request], prompts: list[Prompt], mine: list[int]
    ) -> tuple[list[tuple[int, list[float | None], list[bool], int]], dict[str, int]]:
        """([request, rewards, truncated, tokens sampled] of this rank's share, events of scoring)."""
        if not mine:
            return [], {}
        groups = self.engine.generate([requests[i] for i in mine], self.sampling)
        joined = [[with_prefix(requests[i].prefix, r) for r in group] for i, group in zip(mine, groups, strict=True)]
        judged = score_groups(self.policy, self.reward, [prompts[i] for i in mine], joined)
        return [
            (i, [m["total"] for m in scores], [r.truncated for r in group], sum(len(r.tokens) for r in group))
            for i, scores, group in zip(mine, judged.scores, groups, strict=True)
        ], judged.events


def with_prefix(prefix: object, rollout: Rollout) -> Rollout:
    """The whole response that a reward reads. Log-probs and entropies stay those of its new tokens."""
    return replace(rollout, tokens=torch.cat([torch.tensor(prefix, dtype=torch.int64), rollout.tokens]))
