"""Statistics of whole distributions by place, against full logits of every sequence alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.policy.distribution import place_statistics
from unipo.policy.head import HeadSpec
from unipo.policy.model import Policy
from unipo.policy.spec import PolicySpec
from unipo.training.ranks import Ranks
from unipo.training.scorer import RankedScorer

from .models import make, ragged


def fingerprint(logp: Tensor, place: Tensor, group: Tensor) -> Tensor:
    """Depends on every row, on which place it belongs to, and on the size of the group."""
    total = torch.zeros(len(group), dtype=logp.dtype).index_add(0, place, (logp.exp() ** 2).sum(1))
    return total / group


def slow(model: torch.nn.Module, batch: Batch, where: Tensor) -> Tensor:
    layout = batch.layout
    contexts, responses = (
        batch.context.split(layout.context_lengths.tolist()),
        batch.tokens.split(layout.seq_lengths.tolist()),
    )
    rows = []
    for s, response in enumerate(responses):
        context = contexts[int(layout.seq_prompt[s])]
        logits = model(torch.cat([context, response])[None]).logits[0, len(context) - 1 : -1]
        rows.append(logits.log_softmax(-1))
    full = torch.cat(rows)
    out = torch.zeros(layout.n_tokens)
    for t in range(layout.n_tokens):
        same = (
            where
            & (layout.token_prompt == layout.token_prompt[t])
            & (layout.token_position == layout.token_position[t])
        )
        if bool(where[t]):
            out[t] = (full[same].exp() ** 2).sum() / layout.group_sizes[layout.token_prompt[t]]
    return out


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma2"])
@pytest.mark.parametrize("micro", [0, 12])
def test_it_equals_full_logits_of_every_sequence_alone(name: str, micro: int) -> None:
    batch = ragged()
    where = torch.rand(batch.layout.n_tokens, generator=torch.Generator().manual_seed(1)) > 0.3
    with torch.no_grad():
        expected = slow(make(name), batch, where)
    policy = Policy(make(name), None, PolicySpec(micro_tokens=micro))
    got = policy.per_place(batch, where, fingerprint)
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("budget", [1, 97 * 4 * 4 * 5, 2**20])
def test_the_budget_changes_nothing(budget: int) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(20, 8, generator=draw), torch.randn(97, 8, generator=draw)
    place = torch.randint(0, 6, (20,), generator=draw)
    group = torch.full((20,), 5)
    whole = place_statistics(hidden, weight, None, place, group, fingerprint, HeadSpec())
    cut = place_statistics(hidden, weight, None, place, group, fingerprint, replace(HeadSpec(), budget=budget))
    torch.testing.assert_close(cut, whole, rtol=1e-6, atol=0)
    assert len(set(whole[place == 3].tolist())) == 1


def test_the_pass_is_counted_and_shared_between_ranks() -> None:
    batch = ragged()
    where = torch.ones(batch.layout.n_tokens, dtype=torch.bool)
    policy = Policy(make("qwen3"), None)
    alone = RankedScorer(policy, Ranks())
    whole = alone.per_place(batch, where, fingerprint)
    assert alone.passes == 1

    class Half(Ranks):
        def sum_tensor(self, x: Tensor) -> Tensor:
            return x

    halves = [RankedScorer(policy, Half(rank, 2)).per_place(batch, where, fingerprint) for rank in (0, 1)]
    assert all(bool((h == 0).any()) for h in halves)
    torch.testing.assert_close(halves[0] + halves[1], whole)
