"""Log-probs and entropies without logits equal the plain computation, backward included."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from unipo.policy.head import HeadSpec, linear_logp

N, D, V = 9, 6, 13


def inputs(bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    g = torch.Generator().manual_seed(0)
    h, w = (torch.randn(*s, generator=g, dtype=torch.float64, requires_grad=True) for s in ((N, D), (V, D)))
    b = torch.randn(V, generator=g, dtype=torch.float64, requires_grad=True) if bias else None
    return h, w, b, torch.randint(V, (N,), generator=g)


def plain(
    h: Tensor, w: Tensor, b: Tensor | None, y: Tensor, tau: float, cap: float | None, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    z = scale * torch.nn.functional.linear(h, w, b)
    z = (z if cap is None else cap * torch.tanh(z / cap)) / tau
    logp = torch.log_softmax(z, -1)
    return logp.gather(1, y[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("rows", [1, 3, N, N + 5])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_any_chunk_equals_the_plain_computation(
    scale: float, bias: bool, rows: int, tau: float, cap: float | None
) -> None:
    h, w, b, y = inputs(bias)
    spec = HeadSpec(temperature=tau, softcap=cap, entropy=True, budget=rows * V * 8, scale=scale)
    g, e = torch.randn(2, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wrt = [x for x in (h, w, b) if x is not None]
    ours, theirs = linear_logp(h, w, y, spec, b), plain(h, w, b, y, tau, cap, scale)
    for a, c in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, c, rtol=0, atol=1e-9)
    left = torch.autograd.grad((ours[0] * g + ours[1] * e).sum(), wrt)
    right = torch.autograd.grad((theirs[0] * g + theirs[1] * e).sum(), wrt)
    for a, c in zip(left, right, strict=True):
        torch.testing.assert_close(a, c, rtol=0, atol=1e-9)


def test_gradcheck() -> None:
    h, w, b, y = inputs(True)
    assert b is not None
    spec = HeadSpec(temperature=1.3, entropy=True, budget=4 * V * 8)
    assert torch.autograd.gradcheck(lambda *x: linear_logp(x[0], x[1], y, spec, x[2]), (h, w, b))


def test_the_worked_example_of_three_logits() -> None:
    # z = (0, ln 2, ln 4): p = (1, 2, 4)/7, H = .95570, dH/dz = -p (log p + H), dlogp_3/dz = (-1/7, -2/7, 3/7)
    z = torch.tensor([[0.0, math.log(2), math.log(4)]], dtype=torch.float64, requires_grad=True)
    eye = torch.eye(3, dtype=torch.float64)
    logp, h = linear_logp(z, eye, torch.tensor([2]), HeadSpec(entropy=True))
    assert h.item() == pytest.approx(0.95570, abs=1e-5)
    (dz,) = torch.autograd.grad(logp.sum(), z, retain_graph=False)
    torch.testing.assert_close(dz[0], torch.tensor([-1 / 7, -2 / 7, 3 / 7], dtype=torch.float64))
    _, h = linear_logp(z, eye, torch.tensor([2]), HeadSpec(entropy=True))
    (dh,) = torch.autograd.grad(h.sum(), z)
    torch.testing.assert_close(
        dh[0], torch.tensor([0.14146, 0.08488, -0.22633], dtype=torch.float64), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("logits", "entropy"),
    [([1e4, 0.0, -1e4], 0.0), ([3.0, 3.0, 3.0], math.log(3)), ([0.0, float("-inf"), 0.0], math.log(2))],
)
def test_extreme_logits_stay_finite(logits: list[float], entropy: float) -> None:
    # The logits enter as a bias, so that -inf is not the product of a matrix.
    h = torch.zeros(1, 1, requires_grad=True)
    w = torch.zeros(3, 1, requires_grad=True)
    logp, ent = linear_logp(h, w, torch.tensor([0]), HeadSpec(entropy=True), torch.tensor(logits))
    assert ent.item() == pytest.approx(entropy, abs=1e-6)
    grads = torch.autograd.grad(logp.sum() + ent.sum(), (h, w))
    assert all(bool(torch.isfinite(g).all()) for g in grads)


def test_bfloat16_products_give_float32_log_probs() -> None:
    h, w, _, y = inputs(False)
    logp, _ = linear_logp(h.float(), w.float(), y, HeadSpec(compute=torch.bfloat16))
    assert logp.dtype == torch.float32
    torch.testing.assert_close(logp, plain(h, w, None, y, 1.0, None)[0].float(), rtol=0, atol=0.1)


def test_the_same_weights_give_the_same_bits() -> None:
    h, w, _, y = inputs(False)
    a, _ = linear_logp(h.float(), w.float(), y)
    with torch.no_grad():
        b, _ = linear_logp(h.float(), w.float(), y)
    assert torch.equal(a, b)


@pytest.mark.parametrize(("entropy", "cap", "chunks"), [(False, None, 2), (True, None, 2), (True, 3.0, 3)])
def test_peak_memory_is_bounded_by_the_budget_and_not_by_rows_times_vocabulary(
    entropy: bool, cap: float | None, chunks: int
) -> None:
    from torch.profiler import ProfilerActivity, profile

    rows, vocab, budget = 2048, 20_000, 8 * 2**20
    h = torch.randn(rows, 8, requires_grad=True)
    w = torch.randn(vocab, 8, requires_grad=True)
    spec = HeadSpec(budget=budget, entropy=entropy, softcap=cap)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        logp, ent = linear_logp(h, w, torch.zeros(rows, dtype=torch.int64), spec)
        (logp.sum() + ent.sum()).backward()
    # Every allocation and release; the profiler's own list leaves out those inside of operations.
    events = [e for e in run.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
    assert chunks - 0.5 < held / budget < chunks + 0.5  # all logits at once would be 20


def test_the_gradients_of_many_chunks_are_summed_wide() -> None:
    """In bfloat16 a running sum would lose what the later of 512 chunks add."""
    g = torch.Generator().manual_seed(0)
    h = torch.randn(512, 8, generator=g).abs().to(torch.bfloat16)
    w = (0.1 * torch.randn(V, 8, generator=g)).to(torch.bfloat16)
    y = torch.zeros(512, dtype=torch.int64)

    def gradient(budget: int) -> Tensor:
        own = w.clone().requires_grad_()
        logp, _ = linear_logp(h, own, y, HeadSpec(budget=budget))
        return torch.autograd.grad(logp.sum(), own)[0].float()

    whole, parted = gradient(512 * V * 4), gradient(V * 4)
    assert float((parted - whole).norm() / whole.norm()) < 1e-2
    # the shares of the chunks, added up in bfloat16
    p = torch.softmax((h.float() @ w.float().T), -1)
    slope = -p
    slope[:, 0] += 1
    narrow = torch.zeros(V, 8, dtype=torch.bfloat16)
    for i in range(512):
        narrow += torch.outer(slope[i], h[i].float()).to(torch.bfloat16)
    assert float((narrow.float() - whole).norm() / whole.norm()) > 2e-2
