"""The divergence from a teacher, who sees another prompt, against transformers' own full logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.policy.models import VOCAB, gradients, make, ragged
from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.parts.part import Divergence
from unipo.policy.distribution import divergence, divergence_of, top_divergence, with_tail
from unipo.policy.head import HeadSpec
from unipo.policy.loading import add_lora
from unipo.policy.model import Policy
from unipo.policy.spec import LoraSpec, PolicySpec
from unipo.policy.teacher import edited

SHOWN = [[9, 8, 7], [9, 8, 7], None, [5] * 8, [1, 2], [3, 4], [3, 4]]
MASK = torch.tensor([True] * 3 + [True, False, True, True, True] + [True] * 16)
# transformers keeps rotary angles in float32, also in a float64 model.
NEAR = 1e-6
KINDS = ("jsd", "kl", "reverse_kl", "sampled")


def taught() -> Batch:
    return ragged().with_columns(None, teacher_context=SHOWN)


def plain_logits(model: nn.Module, context: Tensor, response: Tensor) -> Tensor:
    logits: Tensor = model(torch.cat([context, response])[None]).logits
    return logits[0, len(context) - 1 : -1]


def plain(student: nn.Module, teacher: nn.Module, batch: Batch, against: Divergence, tau: float = 1.0) -> Tensor:
    """[T] from whole logits, each response forwarded alone."""
    layout, out = batch.layout, []
    contexts = batch.context.split(layout.context_lengths.tolist())
    for s, y in enumerate(batch.tokens.split(layout.seq_lengths.tolist())):
        if len(y):
            p = (plain_logits(student, contexts[int(layout.seq_prompt[s])], y) / tau).log_softmax(-1)
            with torch.no_grad():
                q = (plain_logits(teacher, torch.tensor(batch.teacher_context[s]), y) / tau).log_softmax(-1)
            out.append(measured(p, q, y, against))
    return torch.cat(out)


def measured(p: Tensor, q: Tensor, y: Tensor, against: Divergence) -> Tensor:
    if against.kind == "sampled":
        own, other = (x.gather(1, y[:, None])[:, 0] for x in (p, q))
        return (own - other).detach() * own
    if against.top:
        ids = p.detach().topk(against.top, -1).indices
        p, q = (torch.cat([x, (1 - x.exp().sum(-1, True)).log()], -1) for x in (p.gather(1, ids), q.gather(1, ids)))
    if against.kind == "kl":
        return (p.exp() * (p - q)).sum(-1)
    if against.kind == "reverse_kl":
        return (q.exp() * (q - p)).sum(-1)
    b = against.beta
    m = ((1 - b) * p.exp() + b * q.exp()).log()
    return b * (q.exp() * (q - m)).sum(-1) + (1 - b) * (p.exp() * (p - m)).sum(-1)


@pytest.mark.parametrize("micro", [0, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_that_of_the_full_logits_and_so_is_its_gradient(kind: str, micro: int) -> None:
    batch, against = taught(), Divergence(kind, beta=0.3, weights="policy")
    model = make("qwen3").double()
    expected = plain(model, model, batch, against)
    expected_gradient = gradients(model, expected[MASK].sum())
    policy = Policy(make("qwen3").double(), None, PolicySpec(micro_tokens=micro))
    live = policy.columns(batch, MASK, against=against)["divergence"]
    torch.testing.assert_close(live[MASK], expected[MASK], rtol=0, atol=NEAR)
    assert bool((live[~MASK] == 0).all())
    for name, gradient in gradients(policy.model, live.sum()).items():
        torch.testing.assert_close(gradient, expected_gradient[name], rtol=0, atol=10 * NEAR)


@pytest.mark.parametrize("kind", ["jsd", "kl", "reverse_kl"])
def test_over_the_likeliest_tokens_and_a_tail_at_another_temperature_of_another_model(kind: str) -> None:
    batch, against = taught(), Divergence(kind, beta=0.5, top=5, temperature=1.7)
    policy = Policy(make("qwen3").double(), None, PolicySpec(reference="frozen"), temperature=0.8)
    policy.make_reference()
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.05 * torch.randn_like(p))
    model, start = make("qwen3").double(), make("qwen3").double()
    model.load_state_dict(policy.causal.state_dict())
    expected = plain(model, start, batch, against, tau=1.7)
    live = policy.columns(batch, MASK, against=against)["divergence"]
    torch.testing.assert_close(live[MASK], expected[MASK], rtol=0, atol=NEAR)
    expected_gradient = gradients(model, expected[MASK].sum())
    for name, gradient in gradients(policy.model, live.sum()).items():
        torch.testing.assert_close(gradient, expected_gradient[name], rtol=0, atol=10 * NEAR)


def test_a_teacher_who_sees_the_same_prompt_with_the_same_weights_teaches_nothing() -> None:
    batch = ragged()
    layout = batch.layout
    contexts = [c.tolist() for c in batch.context.split(layout.context_lengths.tolist())]
    batch = batch.with_columns(None, teacher_context=[contexts[p] for p in layout.seq_prompt.tolist()])
    policy = Policy(make("qwen3").double(), None)
    for kind in KINDS:
        live = policy.columns(batch, MASK, against=Divergence(kind, weights="policy"))["divergence"]
        assert float(live.detach().abs().max()) < 1e-12
        assert max(float(g.abs().max()) for g in gradients(policy.model, live.sum()).values()) < 1e-12


def test_the_frozen_teacher_of_an_adapted_policy_is_the_model_without_adapters() -> None:
    pytest.importorskip("peft")
    batch, start = taught(), make("qwen3")
    policy = Policy(add_lora(make("qwen3"), LoraSpec(rank=4)), None, PolicySpec(lora=LoraSpec(rank=4)))
    with torch.no_grad():
        for _, p in policy.named_parameters():
            p.add_(0.1 * torch.randn_like(p))
    policy.make_reference()
    against = Divergence("reverse_kl")
    live = policy.columns(batch, MASK, against=against)["divergence"]
    adapted: Any = policy.model
    merged = make("qwen3")
    merged.load_state_dict(adapted.merge_and_unload().state_dict())
    expected = plain(merged, start, batch, against)
    torch.testing.assert_close(live[MASK], expected[MASK], rtol=0, atol=1e-4)


def test_neighbours_share_a_teachers_prompt_and_responses_that_are_not_read_are_left_out() -> None:
    rows = edited(taught(), MASK)
    assert rows.layout.group_sizes.tolist() == [2, 1, 1, 2]  # response 2 is empty
    assert rows.layout.context_lengths.tolist() == [3, 8, 2, 2]
    assert rows.context.tolist() == [9, 8, 7, *[5] * 8, 1, 2, 3, 4]
    assert torch.equal(rows.required, MASK)
    assert rows.layout.n_tokens == ragged().layout.n_tokens
    fewer = edited(taught(), MASK & (ragged().layout.token_seq > 3))
    assert fewer.context.tolist() == [1, 2, 3, 4]


def test_nothing_to_read_is_nothing_to_measure() -> None:
    none = torch.zeros_like(MASK)
    live = Policy(make("qwen3"), None).columns(taught(), none, against=Divergence(weights="policy"))
    assert bool((live["divergence"] == 0).all())


def test_what_cannot_be_measured_is_said() -> None:
    lacking = ragged().with_columns(None, teacher_context=[None] * 7)
    with pytest.raises(DataError, match="response 0 of the micro-batch is to be taught, but has no teacher's prompt"):
        edited(lacking, MASK)
    with pytest.raises(ConfigError, match="call make_reference"):
        Policy(make("qwen3"), None).columns(taught(), MASK, against=Divergence())


# -- the k likeliest and a tail -----------------------------------------------------------------------------
def test_a_tail_holds_what_the_others_leave() -> None:
    p = torch.tensor([[0.5, 0.3], [0.7, 0.3]], dtype=torch.float64)
    tail = with_tail(p.log()).exp()[:, 2]
    torch.testing.assert_close(tail, torch.tensor([0.2, 1e-7], dtype=torch.float64), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kind", ["jsd", "kl", "reverse_kl"])
def test_a_coarser_view_never_sees_more(kind: str) -> None:
    g = torch.Generator().manual_seed(0)
    h, w, oh, ow = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((6, 5), (VOCAB, 5), (6, 3), (VOCAB, 3)))
    seen = [top_divergence(h, w, oh, ow, k, kind) for k in (1, 4, 20, VOCAB - 1)]
    whole = divergence(h, w, oh, ow, kind)
    for coarse, fine in zip(seen, [*seen[1:], whole], strict=True):
        assert bool((coarse <= fine + 1e-12).all())
    torch.testing.assert_close(seen[-1], whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["jsd", "kl", "reverse_kl"])
def test_its_gradient_passes_gradcheck_at_any_chunk(kind: str) -> None:
    g = torch.Generator().manual_seed(1)
    h, w, oh, ow = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((4, 5), (11, 5), (4, 3), (11, 3)))
    spec = HeadSpec(temperature=1.3, budget=2 * 11 * 8)
    assert torch.autograd.gradcheck(
        lambda a, b: top_divergence(a, b, oh, ow, 3, kind, 0.3, spec), (h.requires_grad_(), w.requires_grad_())
    )


def test_tokens_that_both_hold_impossible_have_no_gradient() -> None:
    """Both probabilities underflow: the mixture is 0, and its logarithm's slope 0/0."""
    log_p = torch.tensor([[-1e-6, -200.0, -300.0]]).requires_grad_()
    log_q = torch.tensor([[-1e-6, -250.0, -200.0]])
    value = divergence_of(log_p, log_q, "jsd", 0.3)[0]
    (gradient,) = torch.autograd.grad(value.sum(), log_p)
    assert bool(gradient.isfinite().all())
    assert abs(float(value)) < 1e-6
