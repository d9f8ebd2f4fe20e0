"""What sampling kept gives the gradient that a forward pass of its own gives, or is not used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.policy.models import make
from tests.rollout.test_lean import LEAN
from tests.rollout.test_local_engine import ENDS, as_batch, requests
from unipo.batch import Batch
from unipo.parts.part import Divergence
from unipo.policy import layer
from unipo.policy.loading import add_lora
from unipo.policy.model import Policy
from unipo.policy.spec import LoraSpec, PolicySpec
from unipo.policy.tape import Tape
from unipo.rollout.engine import Sampling
from unipo.rollout.local import LocalEngine

BOUND = {"float32": 2e-5, "float64": 1e-10}


@pytest.fixture(autouse=True)
def narrow_models_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unipo.policy.model.TAPE_FROM", 1)


def sampled(policy: Policy, rows: int = 64, sampling: Sampling | None = None) -> tuple[Batch, Tape]:
    """A batch of four prompts and what was kept while it was written."""
    engine = LocalEngine(policy, rows, ENDS)
    engine.tape = tape = policy.make_tape()
    assert tape is not None
    asked = requests()
    groups = engine.generate(asked, sampling or Sampling(max_tokens=20))
    taped = [torch.full_like(r.tokens, -1) if r.taped is None else r.taped for g in groups for r in g]
    return as_batch(asked, groups).with_columns(None, taped=torch.cat(taped)), tape


def policy_of(name: str = "qwen3", weights: str = "float32", **spec: Any) -> Policy:
    dtype = {"float32": torch.float32, "float64": torch.float64}[weights]
    return Policy(make(name).to(dtype), None, PolicySpec(weights=weights, **spec))


def gradients(
    policy: Policy, pieces: list[tuple[Batch, Tensor]], tape: Tape | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """(log-probs, gradients) of a sum with a different weight for every token, entropies included."""
    policy.model.zero_grad()
    said = []
    for number, (piece, required) in enumerate(pieces, start=1):
        live = policy.columns(piece, required, entropy=True, tape=tape, final=number == len(pieces))
        weight = torch.linspace(-1, 2, len(required), dtype=live["logp"].dtype)
        (live["logp"] * weight + 0.3 * live["entropy"] * weight.flip(0))[required].sum().backward()  # type: ignore[no-untyped-call]
        said.append(live["logp"].detach())
    return torch.cat(said), {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}


def everything(batch: Batch) -> list[tuple[Batch, Tensor]]:
    return [(batch, torch.ones(batch.layout.n_tokens, dtype=torch.bool))]


def assert_equal_gradients(policy: Policy, pieces: list[tuple[Batch, Tensor]], tape: Tape, bound: float) -> None:
    plain_logp, plain = gradients(policy, pieces, None)
    logp, found = gradients(policy, pieces, tape)
    torch.testing.assert_close(logp, plain_logp, rtol=0, atol=bound)
    assert plain.keys() == found.keys()
    for name, g in plain.items():
        assert float((found[name] - g).abs().max()) <= bound * float(g.abs().max()), name


@pytest.fixture
def no_forward(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it, and from then on a layer that computes its own forward fails the test."""

    def forbid() -> None:
        def refuse(*args: Any) -> None:
            raise AssertionError("a layer was forwarded although sampling had done it")

        monkeypatch.setattr(layer, "_run", refuse)

    return forbid


@pytest.mark.parametrize("name", LEAN)
@pytest.mark.parametrize("weights", ["float32", "float64"])
@pytest.mark.parametrize("rows", [64, 3])
def test_gradients_are_those_of_the_plain_pass(name: str, weights: str, rows: int) -> None:
    policy = policy_of(name, weights)
    batch, tape = sampled(policy, rows)
    assert len(set(batch.layout.seq_lengths.tolist())) > 3, "responses of one length would prove less"
    assert_equal_gradients(policy, everything(batch), tape, BOUND[weights])


def test_no_layer_is_forwarded_again(no_forward: Any) -> None:
    policy = policy_of()
    batch, tape = sampled(policy)
    no_forward()
    gradients(policy, everything(batch), tape)
    with pytest.raises(AssertionError, match="forwarded"):
        gradients(policy, everything(batch), None)


def test_continuations_are_covered_when_what_they_continue_is_their_context(no_forward: Any) -> None:
    policy = policy_of(weights="float64")
    engine = LocalEngine(policy, 5, ENDS)
    engine.tape = tape = policy.make_tape()
    assert tape is not None
    asked = [replace(r, prefix=(3, 1 + i, 4), limit=6) for i, r in enumerate(requests())]
    groups = engine.generate(asked, Sampling(max_tokens=20))
    batch = as_batch([replace(r, prompt=(*r.prompt, *r.prefix), prefix=()) for r in asked], groups)
    taped = torch.cat([r.taped for g in groups for r in g if r.taped is not None])
    batch = batch.with_columns(None, taped=taped)
    assert_equal_gradients(policy, everything(batch), tape, 1e-10)


def test_dropped_responses_unread_tokens_and_micro_batches(no_forward: Any) -> None:
    policy = policy_of(weights="float64")
    batch, tape = sampled(policy)
    keep = torch.arange(batch.layout.n_sequences) % 3 != 1
    part = batch.take_sequences(keep)
    pieces = []
    for piece in part.split_by_tokens(40):
        required = torch.rand(piece.layout.n_tokens, generator=torch.Generator().manual_seed(1)) < 0.4
        required[0] = True
        pieces.append((piece, required))
    assert len(pieces) > 2
    assert_equal_gradients(policy, pieces, tape, 1e-10)


@pytest.mark.parametrize("against", [Divergence("kl"), Divergence("jsd", top=3), Divergence("sampled")])
def test_the_divergence_from_a_teacher_is_that_of_the_plain_pass(against: Divergence) -> None:
    policy = policy_of(weights="float64")
    batch, tape = sampled(policy)
    shown = [[1 + i % 3, 2, 3] for i in range(batch.layout.n_sequences)]
    batch = batch.with_columns(None, teacher_context=shown)
    required = torch.rand(batch.layout.n_tokens, generator=torch.Generator().manual_seed(1)) < 0.4
    against = replace(against, weights="policy")
    found = policy.columns(batch, required, against=against, tape=tape)["divergence"]
    plain = policy.columns(batch, required, against=against)["divergence"]
    assert float(plain.detach().abs().max()) > 1e-4
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-10)
    weight = torch.linspace(-1, 2, len(required), dtype=torch.float64)
    parameters = policy.parameters()
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), parameters) for x in (found, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_under_autocast_it_agrees_as_closely_as_the_sampler_does() -> None:
    policy = policy_of(compute="bfloat16")
    batch, tape = sampled(policy)
    _, plain = gradients(policy, everything(batch), None)
    _, found = gradients(policy, everything(batch), tape)
    for name, g in plain.items():
        cosine = torch.nn.functional.cosine_similarity(found[name].flatten(), g.flatten(), dim=0)
        assert float(cosine) > 0.99, name


def test_probabilities_beyond_their_limit_are_computed_again() -> None:
    policy = policy_of(weights="float64")
    batch, _ = sampled(policy)
    engine = LocalEngine(policy, 64, ENDS)
    engine.tape = tape = Tape(2, policy.updates, 2**30, p_limit=20_000)
    engine.generate(requests(), Sampling(max_tokens=20))
    assert tape._keeps_p is False
    assert not tape.dropped
    assert_equal_gradients(policy, everything(batch), tape, 1e-10)


def reading_of(policy: Policy, batch: Batch, tape: Tape) -> object:
    from unipo.policy.packing import make_plan

    return tape.reading(batch, make_plan(batch), policy.updates, False)


def test_other_weights_are_not_covered() -> None:
    policy = policy_of()
    batch, tape = sampled(policy)
    assert reading_of(policy, batch, tape) is not None
    policy.updates += 1
    assert reading_of(policy, batch, tape) is None


def test_a_token_off_the_tape_is_not_covered() -> None:
    policy = policy_of()
    batch, tape = sampled(policy)
    taped = batch.taped.clone()
    taped[7] = -1
    assert reading_of(policy, batch.with_columns(None, taped=taped), tape) is None
    assert reading_of(policy, batch.without("taped"), tape) is None


def test_beyond_the_limit_everything_is_dropped() -> None:
    policy = policy_of()
    engine = LocalEngine(policy, 64, ENDS)
    engine.tape = tape = Tape(2, policy.updates, 30_000)
    asked = requests()
    groups = engine.generate(asked, Sampling(max_tokens=20))
    assert tape.dropped
    batch = as_batch(asked, groups).with_columns(None, taped=torch.cat([r.taped for g in groups for r in g]))  # type: ignore[misc]
    assert reading_of(policy, batch, tape) is None
    gradients(policy, everything(batch), tape)


@pytest.mark.parametrize("sampling", [Sampling(0.7, max_tokens=20), Sampling(top_k=3, max_tokens=20)])
def test_another_distribution_than_the_trainers_is_not_kept(sampling: Sampling) -> None:
    batch, tape = sampled(policy_of(), sampling=sampling)
    assert tape.rows == 0
    assert bool((batch.taped == -1).all())


def test_narrow_layers_are_faster_without(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Policy(make("qwen3"), None).make_tape() is not None
    monkeypatch.setattr("unipo.policy.model.TAPE_FROM", 33)
    assert Policy(make("qwen3"), None).make_tape() is None


def test_who_cannot_read_a_tape_makes_none() -> None:
    assert Policy(make("gpt2"), None).make_tape() is None
    assert Policy(make("qwen3"), None, PolicySpec(tape_mb=0)).make_tape() is None
    assert Policy(make("qwen3"), None, PolicySpec(checkpointing=True)).make_tape() is None


def test_adapters_make_no_tape() -> None:
    pytest.importorskip("peft")
    assert Policy(add_lora(make("qwen3"), LoraSpec(rank=2)), None, PolicySpec()).make_tape() is None
