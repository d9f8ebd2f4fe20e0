"""What every method of the catalogue keeps, on a tiny differentiable policy. New methods join by being registered."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace

import pytest
import torch
from bigram import Bigram, Spoiling, random_rollout, with_demonstrations
from torch import Tensor

from unipo.batch import Batch
from unipo.judge import judge, loss, observe, provide_for_loss, remember, required_tokens, weigh, with_mask
from unipo.method import PART_FIELDS as FIELDS
from unipo.method import Method, diff
from unipo.parts.source import Preferences
from unipo.registry import catalogue

CATALOGUE = catalogue()
EXACT = 1e-10
SEEDS = (0, 1)

every_method = pytest.mark.parametrize("method", CATALOGUE.values(), ids=CATALOGUE.keys())
derived = pytest.mark.parametrize("method", [m for m in CATALOGUE.values() if m.parent], ids=lambda m: m.name)


def rollout(method: Method, seed: int) -> Batch:
    """A collected batch with exactly the columns the method's source promises, prompt selections applied."""
    mixed = "demonstration" in method.source.adds
    batch = random_rollout(seed, method.source.group + mixed, pairs=isinstance(method.source, Preferences))
    batch = with_demonstrations(batch) if mixed else batch
    given = set(method.source.adds) | set(() if method.curriculum is None else method.curriculum.adds)
    batch = batch.without(*(set(batch.columns) - given))
    if whole_groups(method):  # a group with nothing to learn from; otherwise an empty response is that
        batch = batch.with_columns(None, trainable=batch.trainable & (batch.layout.token_prompt != 2))
    if batch.has("behaviour_logp"):  # the policy itself wrote every other response, one nearby the rest
        noise = 0.3 * torch.randn(batch.layout.n_tokens, generator=torch.Generator().manual_seed(seed)).double()
        nearby = torch.where(batch.layout.token_seq % 2 == 0, 0.0, noise)
        batch = batch.with_columns(None, behaviour_logp=Bigram(seed).logp(batch) + nearby)
    for part in method.selection:
        if part.level == "prompt":
            batch = batch.take_prompts(part(batch))
    return batch


def ready(method: Method, seed: int, scorer: type[Bigram] = Bigram) -> tuple[Method, Bigram, Batch]:
    """(method bound to a budget, a policy some way from the old one, the judged and weighed batch)."""
    method, policy = method.bound_to(6), scorer(seed)
    batch = judge(method, rollout(method, seed), policy)
    batch = provide_for_loss(method, batch, policy, skip=("logp", "entropy"))
    drift = torch.randn(policy.theta.shape, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.float64)
    policy.theta = (policy.theta.detach() + 0.1 * drift).requires_grad_()
    return method, policy, weigh(method, batch, policy)


def step(method: Method, policy: Bigram, batch: Batch) -> tuple[Tensor, Tensor]:
    """(loss, gradient by the policy's parameters)."""
    total = loss(method, policy.live(batch, method.divergence)).total
    if not total.requires_grad:
        return total, torch.zeros_like(policy.theta)
    (gradient,) = torch.autograd.grad(total, policy.theta)
    return total.detach(), gradient


def same(whole: tuple[Tensor, Tensor], parts: list[tuple[Tensor, Tensor]]) -> None:
    for k in (0, 1):
        total = torch.stack([p[k] for p in parts]).sum(0)
        torch.testing.assert_close(total, whole[k], rtol=EXACT, atol=EXACT)


def equal_columns(a: Batch, b: Batch) -> None:
    assert a.columns.keys() == b.columns.keys()
    for name, value in a.columns.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, b.columns[name], rtol=0, atol=0, equal_nan=True)
        else:
            assert value == b.columns[name]


def whole_groups(method: Method) -> bool:
    return any(term.objective.level == "prompt" for term in method.terms)


# -- the gradient does not depend on how the batch is cut ---------------------------------------------
@every_method
@pytest.mark.parametrize("seed", SEEDS)
def test_something_is_learned(method: Method, seed: int) -> None:
    """The properties below would hold of a method that does nothing."""
    _, gradient = step(*ready(method, seed))
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().max()) > 1e-4


@every_method
@pytest.mark.parametrize("seed", SEEDS)
def test_micro_batches_sum_to_the_whole(method: Method, seed: int) -> None:
    method, policy, batch = ready(method, seed)
    expected = step(method, policy, batch)
    for budget in (1, 9, 30):
        pieces = list(batch.split_by_tokens(budget, whole_groups(method)))
        assert len(pieces) > 1
        same(expected, [step(method, policy, piece) for piece in pieces])


@every_method
@pytest.mark.parametrize("seed", SEEDS)
def test_two_ranks_sum_to_the_whole(method: Method, seed: int) -> None:
    method, policy, batch = ready(method, seed)
    expected = step(method, policy, batch)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(4):
        first = torch.rand(batch.layout.n_prompts, generator=draw) < 0.5
        same(expected, [step(method, policy, batch.take_prompts(side)) for side in (first, ~first) if side.any()])


@every_method
@pytest.mark.parametrize("seed", SEEDS)
def test_what_needs_no_gradient_can_be_left_out(method: Method, seed: int) -> None:
    method, policy, batch = ready(method, seed)
    layout = batch.layout
    needed = layout.seq_sum(required_tokens(method, batch).long()) > 0
    if whole_groups(method):
        needed = layout.to_sequences(layout.group_sum(needed.long()) > 0)
    assert not bool(needed.all())
    smaller = batch.take_sequences(needed)
    torch.testing.assert_close(step(method, policy, smaller)[1], step(method, policy, batch)[1], rtol=EXACT, atol=EXACT)


@every_method
@pytest.mark.parametrize("seed", SEEDS)
def test_required_tokens_cover_every_gradient(method: Method, seed: int) -> None:
    method, policy, batch = ready(method, seed)
    live = policy.live(batch, method.divergence)
    leaves = {n: x.detach().requires_grad_() for n, x in live.columns.items() if getattr(x, "requires_grad", False)}
    assert {"logp", "entropy"} <= leaves.keys()
    total = loss(method, live.with_columns(None, **leaves)).total
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    moved = torch.stack([g != 0 for g in gradients if g is not None]).any(0)
    required = required_tokens(method, batch)
    assert bool(moved.any())
    assert not bool((moved & ~required).any())
    assert not bool((required & ~batch.mask).any())


# -- what must not count does not count ------------------------------------------------------------------
@every_method
@pytest.mark.parametrize("seed", SEEDS)
def test_masked_tokens_never_reach_loss_or_gradient(method: Method, seed: int) -> None:
    method, policy, batch = ready(method, seed)
    _, _, spoiled = ready(method, seed, Spoiling)
    prepared = [name for term in method.terms for name in term.objective.prepares]
    for name in ("mask", "advantage", "weight.0", *prepared):
        if batch.has(name):
            torch.testing.assert_close(spoiled.columns[name], batch.columns[name], rtol=0, atol=0)

    live = policy.live(spoiled, method.divergence)
    off = ~live.mask
    for name, poison in {
        "logp": float("-inf"),
        "old_logp": float("inf"),
        "reference_logp": float("nan"),
        "behaviour_logp": float("nan"),
        "current_logp": float("nan"),
        "entropy": float("inf"),
        "divergence": float("inf"),
        "resampled_logp": float("-inf"),
        "resampled_hits": float("nan"),
    }.items():
        if live.has(name):
            live = live.with_columns(None, **{name: torch.where(off, poison, getattr(live, name))})
    total = loss(method, live).total
    (gradient,) = torch.autograd.grad(total, policy.theta)
    same(step(method, policy, batch), [(total.detach(), gradient)])


@every_method
def test_the_mask_is_trainable_scored_and_selected(method: Method) -> None:
    batch = with_mask(method, rollout(method, 0))
    assert not bool((batch.mask & ~batch.trainable).any())
    if batch.has("scored"):
        counted = batch.scored | batch.demonstration if batch.has("demonstration") else batch.scored
        assert not bool(batch.mask[~batch.layout.to_tokens(counted)].any())


@every_method
def test_advantages_are_finite_and_zero_off_the_mask(method: Method) -> None:
    if method.advantage is None:
        pytest.skip("offline: no advantage")
    for scorer in (Bigram, Spoiling):
        _, _, batch = ready(method, 0, scorer)
        assert bool(torch.isfinite(batch.advantage).all())
        assert not bool((batch.advantage[~batch.mask] != 0).any())


@every_method
def test_a_group_of_equal_rewards_moves_nothing(method: Method) -> None:
    """Exactly 0, not 1e-17 over a tiny std. The group is the first; its rewards are all 0.1."""
    if method.advantage is None or method.advantage.smallest_group < 2:
        pytest.skip("does not compare the responses of a group")
    if method.advantage.batchwide:
        pytest.skip("standardised over the batch: where others moved, a group that agrees is moved against them")
    plain = method.but(selection=(), shaping=(), regularisers=(), extra=())
    plain, policy, batch = ready(plain, 0)
    members = batch.layout.token_prompt == 0
    assert bool(batch.mask[members].any())
    live = policy.live(batch)
    (gradient,) = torch.autograd.grad(loss(plain, live).total, live.logp)
    assert not bool((gradient[members] != 0).any())
    assert not bool(required_tokens(plain, batch)[members].any())


@every_method
def test_a_batch_in_which_nothing_counts_has_loss_and_gradient_zero(method: Method) -> None:
    method, policy = method.bound_to(6), Bigram(0)
    batch = rollout(method, 0)
    batch = judge(method, batch.with_columns(None, trainable=torch.zeros_like(batch.trainable)), policy)
    batch = weigh(method, provide_for_loss(method, batch, policy, skip=("logp", "entropy")))
    total, gradient = step(method, policy, batch)
    assert float(total) == 0
    assert not bool((gradient != 0).any())


# -- signals ------------------------------------------------------------------------------------------------
@every_method
def test_models_are_asked_only_for_what_is_needed_and_once(method: Method) -> None:
    _, policy, batch = ready(method, 0)
    asked = [weights for weights, _ in policy.calls]
    assert asked.count("reference") == int(any("reference_logp" in s.adds for s in method.signals))
    assert asked.count("value") == int("value" in method.needs)
    assert asked.count("policy") <= len(
        [c for s in method.signals for c in s.adds if c not in ("reference_logp", "value")]
    )
    assert not batch.has("logp")


@every_method
def test_without_old_logp_the_current_policy_is_the_old_one(method: Method) -> None:
    """The first update of a batch needs no extra pass."""
    method, policy = method.bound_to(6), Bigram(3)
    batch = judge(method, rollout(method, 3), policy)
    batch = weigh(method, provide_for_loss(method, batch, policy, skip=("logp", "entropy")))
    expected = step(method, policy, batch)
    same(expected, [step(method, policy, batch.without("old_logp"))])


@every_method
def test_judging_is_deterministic_and_leaves_its_input_alone(method: Method) -> None:
    method = method.bound_to(6)
    batch = rollout(method, 1)
    before = pickle.loads(pickle.dumps(batch))
    first, second = (judge(method, batch, Bigram(1)) for _ in range(2))
    equal_columns(batch, before)
    equal_columns(first, second)


@every_method
def test_memory_survives_a_step_and_a_save(method: Method, tmp_path_factory: pytest.TempPathFactory) -> None:
    method, _, batch = ready(method, 0)
    kept = remember(method, observe(method, batch))
    keys = {part.state_key for _, part in method.parts if part.state_key}
    assert set(kept.states) == keys
    path = tmp_path_factory.mktemp("state") / "batch.safetensors"
    kept.save(path)
    assert Batch.load(path).states == kept.states
    again = judge(method, replace(rollout(method, 1), states=kept.states), Bigram(1))
    assert again.states == kept.states


# -- the composition ------------------------------------------------------------------------------------------
@derived
def test_diff_to_the_parent_names_what_changed_and_only_that(method: Method) -> None:
    parent = CATALOGUE[method.parent or ""]
    changes = diff(parent, method)
    assert changes
    assert all(c.before != c.after for c in changes)
    changed = {f for f in FIELDS if getattr(parent, f) != getattr(method, f)}
    assert {c.path.split(".")[0] for c in changes} == changed
    rebuilt = parent.but(name="rebuilt", **{f: getattr(method, f) for f in changed})
    assert diff(method, rebuilt) == []
    assert diff(method, method) == []


@every_method
def test_explain_gives_every_formula(method: Method) -> None:
    text = method.explain()
    for _, part in method.parts:
        assert part.formula().strip()
        assert part.formula() in text
    for signal in method.signals:
        assert signal.formula() in text


@every_method
def test_a_method_is_a_value(method: Method) -> None:
    assert pickle.loads(pickle.dumps(method)) == method
    assert method.but() == method
    child = method.but(name="child")
    assert (child.parent, child.aliases, diff(method, child)) == (method.name, (), [])
    back = child.but(name=method.name, parent=method.parent, aliases=method.aliases).but(
        notes=method.notes, doubts=method.doubts, limits=method.limits
    )
    assert back == method


@every_method
def test_a_method_knows_its_paper(method: Method) -> None:
    assert method.summary.endswith(".")
    assert method.paper.title
    assert re.fullmatch(r"(\d{4}\.\d{5})?", method.paper.arxiv)
    assert all(type(part).source or name == "source" for name, part in method.parts)


@every_method
def test_lengths_left_open_are_bound_once(method: Method) -> None:
    bound = method.bound_to(77)
    assert bound.bound_to(5) == bound
    assert (bound == method) == ("max_tokens" not in method.explain())
