"""Evaluate a policy on held-out prompts: sampled accuracy, or likelihood of held-out responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from unipo.batch import Batch
from unipo.evaluate.accuracy import Interval, accuracy_interval, cluster_bootstrap
from unipo.judge import with_mask
from unipo.method import Method
from unipo.parts.preference import pair_sides
from unipo.policy.model import Policy
from unipo.rollout.engine import Engine, Request, Sampling
from unipo.tasks.task import Reward
from unipo.training.prompts import Prompt
from unipo.training.ranks import Ranks
from unipo.training.source import offline_batch, score_groups

EVAL_SEED = 20_240_229


def sampled_accuracy(
    policy: Policy,
    engine: Engine,
    reward: Reward,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    samples: int = 1,
    ranks: Ranks | None = None,
    progress: Callable[[int], None] | None = None,
) -> Interval:
    """Mean score over held-out prompts, with the same seeds at every evaluation.

    Responses that could not be scored count 0 and are counted (`Interval.unscored`).
    """
    ranks = ranks or Ranks()
    mine = ranks.share([1] * len(prompts))[ranks.rank]
    requests = [Request(prompts[i].ids, samples, EVAL_SEED + i, images=prompts[i].pixels) for i in mine]
    groups = engine.generate(requests, sampling, progress) if requests else []
    own = score_groups(policy, reward, [prompts[i] for i in mine], groups) if requests else None
    scores: list[list[float]] = [[] for _ in prompts]
    unscored = 0
    for indices, marks in ranks.gather_objects((mine, None if own is None else own.scores)):
        for place, i in enumerate(indices):
            scores[i] = [float(m["score"] or 0.0) for m in marks[place]]
            unscored += sum(m["score"] is None for m in marks[place])
    return replace(accuracy_interval(scores), unscored=unscored)


def offline_accuracy(policy: Policy, method: Method, prompts: Sequence[Prompt]) -> Interval:
    """Held-out responses scored under the policy, no sampling.

    Ranked pairs: share of pairs whose preferred response gained more likelihood against the reference (or is
    likelier, without one).  Demonstrations: mean probability per token, exp(-loss), as the accuracy.
    """
    ranked = "preference" in method.source.adds
    batch = with_mask(method, offline_batch(prompts, ranked))
    gain = batch.layout.seq_sum(policy.logp(batch))
    if not ranked:
        per_token = (gain / batch.layout.seq_lengths.clamp(min=1)).exp().double()
        low, high = cluster_bootstrap(per_token)
        return Interval(float(per_token.mean()), low, high, len(prompts), 1)
    if method.needs_reference():
        gain = gain - batch.layout.seq_sum(policy.logp(batch, "reference"))
    return accuracy_interval([[float(x)] for x in _ordered(batch, gain)])


def _ordered(batch: Batch, gain: torch.Tensor) -> torch.Tensor:
    """[P] 1 where the preferred side gained more, one half on a tie."""
    chosen, rejected = pair_sides(batch.preference, batch)
    margin = gain[chosen] - gain[rejected]
    return torch.where(margin == 0, torch.full_like(margin, 0.5), (margin > 0).to(margin.dtype))
