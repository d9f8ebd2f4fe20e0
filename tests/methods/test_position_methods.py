"""TW-GRPO in the loop's middle: its limits, its range, and what its extra pass reads."""

from __future__ import annotations

import torch
from bigram import Bigram, random_rollout

from unipo.batch import Batch
from unipo.judge import judge
from unipo.parts.position import place_disagreement, position_weight
from unipo.registry import get_method

TW = get_method("tw-grpo")
PLAIN = TW.but(credit=())


def identical(seed: int) -> Batch:
    """Groups of eight copies of one response, with different rewards."""
    batch = random_rollout(seed, 8)
    first = batch.layout.seq_lengths.view(6, 8)[:, 0]
    keep = [
        torch.arange(int(batch.layout.seq_starts[8 * p]), int(batch.layout.seq_starts[8 * p] + first[p]))
        for p in range(6)
    ]
    rows = torch.cat([k for k in keep for _ in range(8)])
    layout = type(batch.layout)(first.repeat_interleave(8), batch.layout.group_sizes, batch.layout.context_lengths)
    columns = {k: v[rows] if batch.levels[k] == "token" else v for k, v in batch.columns.items()}
    return Batch.of(layout, **columns)


def test_identical_responses_are_exactly_grpo() -> None:
    batch = identical(0)
    got, expected = (judge(m, batch, Bigram(0)).advantage for m in (TW, PLAIN))
    assert bool((expected != 0).any())
    assert torch.equal(got, expected)


def test_alpha_one_is_exactly_grpo_and_asks_no_model() -> None:
    batch = random_rollout(0, 8)
    off = TW.but(**{"credit.0.alpha": 1.0})
    assert torch.equal(judge(off, batch).advantage, judge(PLAIN, batch).advantage)


def test_weights_span_one_to_alpha_in_every_group_that_disagrees() -> None:
    batch, policy = random_rollout(1, 8), Bigram(1)
    judged, plain = judge(TW, batch, policy), judge(PLAIN, batch)
    layout = judged.layout
    for prompt in range(layout.n_prompts):
        own = (layout.token_prompt == prompt) & (plain.advantage != 0)
        if not bool(own.any()):
            continue
        weight = judged.advantage[own] / plain.advantage[own]
        assert float(weight.min()) >= 1 - 1e-12
        assert float(weight.max()) <= 1.7 + 1e-12
        counted = batch.trainable & layout.to_tokens(batch.scored)
        every = position_weight(judged.disagreement, layout, counted, 1.7)[(layout.token_prompt == prompt) & counted]
        assert float(every.min()) == 1
        assert abs(float(every.max()) - 1.7) < 1e-6


def test_a_place_has_one_weight_in_the_whole_group() -> None:
    judged = judge(TW, random_rollout(1, 8), Bigram(1))
    layout, value = judged.layout, judged.disagreement
    for prompt in range(layout.n_prompts):
        for place in range(5):
            own = (layout.token_prompt == prompt) & (layout.token_position == place) & judged.trainable
            assert len(set(value[own & layout.to_tokens(judged.scored)].tolist())) <= 1


def test_prompts_without_advantage_are_not_scored() -> None:
    policy = Bigram(0)
    judged = judge(TW, random_rollout(0, 8), policy)
    ((_, asked),) = policy.calls
    informative = judged.layout.group_sum(judged.layout.seq_sum((judged.advantage != 0).long())) > 0
    assert not bool(informative.all())
    assert asked.layout.n_prompts == int(informative.sum())


def test_the_weight_peaks_where_the_policy_has_to_decide() -> None:
    """Places 0 to 3 and 5 have the same distribution in every response; at place 4 they differ."""
    shared, differ = torch.zeros(4, 6, dtype=torch.float64), torch.eye(4, 6, dtype=torch.float64) * 3
    logits = torch.stack([shared] * 4 + [differ] + [shared])
    value = place_disagreement(
        logits.log_softmax(-1).flatten(0, 1), torch.arange(6).repeat_interleave(4), torch.full((6,), 4)
    )
    assert int(value.argmax()) == 4
    assert float(value[[0, 1, 2, 3, 5]].abs().max()) == 0
