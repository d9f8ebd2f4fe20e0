"""Whole distributions from hidden states equal the plain computation, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unipo.errors import ConfigError
from unipo.policy.distribution import DIVERGENCES, candidate_logp, divergence, top_tokens
from unipo.policy.head import HeadSpec

N, D, V = 7, 5, 11


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    h, w, oh, ow = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((N, D), (V, D), (N, 3), (V, 3)))
    return h.requires_grad_(), w.requires_grad_(), oh, ow


def plain(h: Tensor, w: Tensor, tau: float) -> Tensor:
    return torch.log_softmax(h @ w.T / tau, -1)


@pytest.mark.parametrize("rows", [1, 3, N, N + 5])
@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_candidates_equal_the_plain_gather(rows: int, tau: float) -> None:
    h, w, _, _ = inputs()
    ids = torch.randint(V, (N, 4), generator=torch.Generator().manual_seed(1))
    g = torch.randn(N, 4, dtype=torch.float64)
    spec = HeadSpec(temperature=tau, budget=rows * V * 8)
    ours = torch.autograd.grad((candidate_logp(h, w, ids, spec) * g).sum(), (h, w))
    theirs = torch.autograd.grad((plain(h, w, tau).gather(1, ids) * g).sum(), (h, w))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_gradients_of_candidates_pass_gradcheck() -> None:
    h, w, _, _ = inputs()
    ids = torch.tensor([[0, 3, 3]]).expand(N, -1)
    assert torch.autograd.gradcheck(lambda a, b: candidate_logp(a, b, ids, HeadSpec(budget=2 * V * 8)), (h, w))


@pytest.mark.parametrize("rows", [1, 3, N + 5])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergences_pass_gradcheck_at_any_chunk(kind: str, rows: int) -> None:
    h, w, oh, ow = inputs()
    spec = HeadSpec(temperature=1.3, budget=rows * V * 8)
    assert torch.autograd.gradcheck(lambda a, b: divergence(a, b, oh, ow, kind, 0.3, spec), (h, w))


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_model_has_no_divergence_from_itself_and_no_gradient(kind: str) -> None:
    h, w, _, _ = inputs()
    value = divergence(h, w, h, w, kind)
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-14)
    assert max(float(g.abs().max()) for g in torch.autograd.grad(value.sum(), (h, w))) < 1e-13


def test_the_kl_of_a_worked_example() -> None:
    # pi = (.6, .3, .1), ref = (.4, .4, .2): KL(pi||ref) = .6 ln 1.5 + .3 ln .75 + .1 ln .5 = .087660
    eye = torch.eye(3, dtype=torch.float64)
    pi, ref = (torch.tensor([p], dtype=torch.float64).log() for p in ([0.6, 0.3, 0.1], [0.4, 0.4, 0.2]))
    pi.requires_grad_()
    value = divergence(pi, eye, ref, eye)
    assert float(value) == pytest.approx(0.087660, abs=1e-6)
    (g,) = torch.autograd.grad(value.sum(), pi)
    torch.testing.assert_close(
        g[0], torch.tensor([0.19068, -0.11260, -0.07808], dtype=torch.float64), rtol=0, atol=1e-5
    )
    (forward,) = torch.autograd.grad(divergence(pi, eye, ref, eye, "reverse_kl").sum(), pi)
    torch.testing.assert_close(forward[0], torch.tensor([0.2, -0.1, -0.1], dtype=torch.float64), rtol=0, atol=1e-12)


def test_top_tokens_are_the_largest_and_sum_below_one() -> None:
    h, w, _, _ = inputs()
    ids, logp = top_tokens(h, w, 3, HeadSpec(budget=2 * V * 8))
    expected = plain(h, w, 1.0).topk(3, -1)
    assert torch.equal(ids, expected.indices)
    torch.testing.assert_close(logp, expected.values)
    torch.testing.assert_close(top_tokens(h, w, V)[1].exp().sum(-1), torch.ones(N, dtype=torch.float64))


def test_impossible_settings_are_refused() -> None:
    h, w, oh, ow = inputs()
    with pytest.raises(ConfigError, match="between 1 and"):
        top_tokens(h, w, V + 1)
    with pytest.raises(ConfigError, match="did you mean 'jsd'"):
        divergence(h, w, oh, ow, "jds")
    with pytest.raises(ConfigError, match="soft-capped"):
        candidate_logp(h, w, torch.zeros(N, 1, dtype=torch.int64), HeadSpec(softcap=30.0))
