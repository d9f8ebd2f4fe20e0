"""Methods that choose prompts and samples: what each becomes in its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bigram import Bigram, random_rollout
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.judge import judge, loss, observe, provide_for_loss, remember, weigh
from unipo.method import Method, diff
from unipo.parts.curriculum import DomainWeights
from unipo.parts.downsampling import WidestAdvantages
from unipo.parts.objective import Clipped
from unipo.parts.part import Selection
from unipo.parts.regulariser import ReferenceKL
from unipo.parts.selection import DynamicSampling, PassRateBand
from unipo.registry import get_method
from unipo.training.setting import changed

GRPO, GRPO_TOKEN = get_method("grpo"), get_method("grpo-token")


def gradient(method: Method, batch: Batch) -> Tensor:
    """Gradient by the policy some way from the old one."""
    policy = Bigram(0)
    batch = weigh(method, provide_for_loss(method, judge(method, batch, policy), policy, skip=("logp", "entropy")))
    policy.theta = (policy.theta.detach() * 1.1).requires_grad_()
    (value,) = torch.autograd.grad(loss(method, policy.live(batch)).total, policy.theta)
    return value


def kept(method: Method, batch: Batch) -> Batch:
    for part in method.selection:
        if part.level == "prompt":
            batch = batch.take_prompts(part(batch))
    return batch


# -- online difficulty filtering ---------------------------------------------------------------------
def test_filtering_leaves_the_advantages_of_kept_groups_alone() -> None:
    method = get_method("online-difficulty-filtering")
    whole = random_rollout(0, 4)
    rate = PassRateBand()(whole)
    assert 0 < int(rate.sum()) < len(rate)
    some = judge(method, kept(method, whole), Bigram(0))
    everything = judge(method, whole, Bigram(0)).take_prompts(rate)
    assert torch.equal(some.advantage, everything.advantage)


def test_the_open_band_is_grpo() -> None:
    method = get_method("online-difficulty-filtering").but(**{"selection.0.low": -1.0, "selection.0.high": 2.0})
    whole = random_rollout(1, 4)
    assert torch.equal(gradient(method, kept(method, whole)), gradient(GRPO, whole))


# -- d3s ---------------------------------------------------------------------------------------------
def test_d3s_that_keeps_everything_is_its_base_bit_for_bit() -> None:
    everything = {f"selection.{i}.{end}": 1.0 for i in (0, 1) for end in ("first", "last")}
    method = get_method("d3s").but(**everything)
    batch = random_rollout(0, 4)
    assert torch.equal(gradient(method, batch), gradient(GRPO_TOKEN, batch))


def test_d3s_drops_responses_then_tokens_and_counts_only_what_is_left() -> None:
    batch = random_rollout(0, 4)
    base = judge(GRPO_TOKEN, batch, Bigram(0))
    half = judge(get_method("d3s").but(**{"selection.1.first": 1.0}), batch, Bigram(0))
    both = judge(get_method("d3s").but(**{"selection.1.first": 0.5}), batch, Bigram(0))
    layout = batch.layout
    assert int((layout.seq_count(half.mask) > 0).sum()) <= 12  # two of four, six prompts
    assert not bool((half.mask & ~base.mask).any())
    assert not bool((both.mask & ~half.mask).any())
    assert int(both.mask.sum()) == -(-int(half.mask.sum()) // 2)
    # advantages are the full group's, and the mean is over the tokens that are left
    assert torch.equal(both.advantage[both.mask], base.advantage[both.mask])
    assert torch.equal(both.sequence_advantage, base.sequence_advantage)
    weights = getattr(weigh(GRPO_TOKEN, both), "weight.0")
    assert float(weights.sum()) == pytest.approx(1)
    assert not bool((weights[~both.mask] != 0).any())


def test_a_batch_without_any_advantage_is_not_computed() -> None:
    from unipo.judge import required_tokens

    method, batch = get_method("d3s"), random_rollout(0, 4)
    flat = batch.with_columns(None, reward=torch.full_like(batch.reward, 0.1))
    judged = weigh(method, judge(method, flat, Bigram(0)))
    assert not bool(required_tokens(method, judged).any())


def test_late_selections_are_refused_where_they_cannot_work() -> None:
    class LatePrompts(Selection):
        late = True

    with pytest.raises(ConfigError, match=r"LatePrompts selects after credit.*sequence or token"):
        GRPO.but(selection=(LatePrompts(),))
    with pytest.raises(ConfigError, match=r"WidestAdvantages \(selection\) needs column 'sequence_advantage'"):
        get_method("sft").but(selection=(WidestAdvantages(),))


# -- clpo --------------------------------------------------------------------------------------------
def test_clpo_without_rewriting_and_scales_is_grpo_with_the_filter() -> None:
    plain = get_method("clpo").but(curriculum=None, **{"regularisers.0.hard": 1.0})
    filtered = GRPO_TOKEN.but(
        advantage=plain.advantage, selection=(DynamicSampling(),), regularisers=(ReferenceKL(beta=0.001),)
    )
    batch = random_rollout(0, 4)
    assert torch.equal(gradient(plain, kept(plain, batch)), gradient(filtered, kept(filtered, batch)))


def test_clpo_trains_on_mixed_groups_only_and_halves_the_kl_of_hard_ones() -> None:
    method = get_method("clpo")
    batch = random_rollout(0, 4).with_columns(None, variant=["", "hard", "medium", "", "hard", ""])
    batch = kept(method, batch)
    rate = batch.layout.group_mean(batch.score, batch.scored)
    assert bool(((rate > 0) & (rate < 1)).all())
    only_kl = method.but(objective=Clipped())
    zero = batch.with_columns(None, reward=torch.zeros_like(batch.reward))
    for p, variant in enumerate(batch.variant):
        one = zero.take_prompts([p])
        scaled = gradient(only_kl, one)
        full = gradient(only_kl.but(**{"regularisers.0.hard": 1.0}), one)
        factor = 0.5 if variant == "hard" or float(rate[p]) <= 0.3 else 1.0
        torch.testing.assert_close(scaled, factor * full, rtol=1e-12, atol=1e-18)


# -- curricula in a composition ----------------------------------------------------------------------
def test_a_curriculum_learns_from_everything_sampled_and_other_parts_from_the_update() -> None:
    method = get_method("dads-rulereasoner").but(**{"curriculum.every": 1})
    batch = random_rollout(0, 4)
    batch = batch.with_columns(None, row=[{"domain": "ab"[p % 2]} for p in range(6)])
    batch = replace(batch, states={"other": {"x": 1}})
    seen = observe(method, batch)
    assert set(seen.states) == {"other", "domain_weights"}
    assert set(seen.states["domain_weights"]["reward"]) == {"a", "b"}
    assert remember(method, batch).states == batch.states
    assert observe(GRPO, batch) is batch


def test_a_curriculum_is_a_part_like_others() -> None:
    dads = get_method("dads")
    assert next(c.path for c in diff(GRPO_TOKEN, dads)) == "curriculum"
    assert dads.explain().splitlines()[0].startswith("prompts")
    tuned = changed(GRPO, {"curriculum": "DomainWeights(field='kind', tau=0.8)"})
    assert tuned.curriculum == DomainWeights(field="kind", tau=0.8)
    assert changed(tuned, {"curriculum.every": 4}).curriculum == DomainWeights(field="kind", tau=0.8, every=4)
    assert changed(tuned, {"curriculum": "None"}).curriculum is None
    with pytest.raises(ConfigError, match=r"curriculum takes a curriculum such as .*DomainWeights"):
        changed(GRPO, {"curriculum": "Clipped()"})
    with pytest.raises(ConfigError, match=r"DomainWeights \(curriculum\) needs column 'score'"):
        get_method("sft").but(curriculum=DomainWeights())
