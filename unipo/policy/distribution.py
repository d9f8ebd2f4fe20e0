"""Whole distributions straight from hidden states: the likeliest tokens, given candidates, and divergences.

For methods that look at more than the sampled token (several candidates at a position, distillation, exact KL).
Like `unipo.policy.head`, rows are worked off in chunks of `spec.budget` bytes of logits, each function has its own
backward, and the peak extra memory does not depend on the number of rows.  No soft-capped models: their logits'
slope is not carried here, and they are refused.

Source: practice; GKD (arXiv 2306.13649) for the generalised Jensen-Shannon divergence.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from unipo.errors import ConfigError, unknown
from unipo.parts.part import Measure
from unipo.policy.head import HeadSpec, _cast, _logits, chunk_rows

DIVERGENCES = ("kl", "reverse_kl", "jsd")


def _log_softmax(hidden: Tensor, weight: Tensor, spec: HeadSpec) -> Tensor:
    """[n, V] log-probabilities in at least float32."""
    dtype = spec.compute or hidden.dtype
    z = torch.nn.functional.linear(hidden.to(dtype), weight.to(dtype))
    z = z if z.dtype in (torch.float32, torch.float64) else z.float()
    return torch.log_softmax(z * (spec.scale / spec.temperature), dim=-1)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _check(spec: HeadSpec) -> None:
    if spec.softcap is not None:
        raise ConfigError("whole distributions of soft-capped models are not supported")


def top_tokens(hidden: Tensor, weight: Tensor, k: int, spec: HeadSpec | None = None) -> tuple[Tensor, Tensor]:
    """The k likeliest tokens of each row. hidden: [n, d]; weight: [V, d].

    Returns ([n, k] ids, [n, k] log-probs, descending), without gradient; feed the ids to `candidate_logp` for one.
    """
    spec = spec or HeadSpec()
    _check(spec)
    if not 1 <= k <= len(weight):
        raise ConfigError(f"k must lie between 1 and the vocabulary's {len(weight)}, got {k}")
    rows = chunk_rows(len(weight), _wide(hidden), spec.budget)
    with torch.no_grad():
        best = [_log_softmax(part, weight, spec).topk(k, dim=-1) for part in hidden.split(rows)]
    return torch.cat([b.indices for b in best]), torch.cat([b.values for b in best])


@torch.no_grad()
def draw_tokens(hidden: Tensor, weight: Tensor, chance: Tensor, spec: HeadSpec | None = None) -> Tensor:
    """[n, K] ids drawn with replacement from each row's distribution. hidden: [n, d]; weight: [V, d].

    chance: [n, K] float64 in [0, 1): the k-th draw is the first token whose running sum exceeds it.
    """
    spec = spec or HeadSpec()
    _check(spec)
    rows = chunk_rows(len(weight), torch.float64, spec.budget)
    drawn = []
    for part, points in zip(hidden.split(rows), chance.split(rows), strict=True):
        running = _log_softmax(part, weight, spec).double().exp_().cumsum(-1)
        drawn.append(torch.searchsorted(running, points * running[:, -1:], right=True).clamp_(max=len(weight) - 1))
    return torch.cat(drawn) if drawn else torch.zeros(chance.shape, dtype=torch.int64, device=hidden.device)


class _Candidates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, spec: HeadSpec) -> Tensor:
        rows = chunk_rows(len(weight), _wide(hidden), spec.budget)
        out = [
            _log_softmax(h, weight, spec).gather(1, i) for h, i in zip(hidden.split(rows), ids.split(rows), strict=True)
        ]
        ctx.save_for_backward(hidden, weight, ids)
        ctx.spec = spec
        return torch.cat(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, ids = ctx.saved_tensors
        spec: HeadSpec = ctx.spec
        rows = chunk_rows(len(weight), _wide(hidden), spec.budget)
        sums = _Sums(hidden, weight)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            p = _log_softmax(hidden[part], weight, spec).exp_()
            g = grads[0][part].to(p.dtype)
            dz = p.mul_(-g.sum(1, keepdim=True)).scatter_add_(1, ids[part], g)
            sums.add(part, dz.mul_(spec.scale / spec.temperature), spec)
        return sums.hidden, sums.weight.to(weight.dtype), None, None


class _Sums:
    """Gradients of hidden states and output weight, accumulated over chunks in float32 or wider."""

    def __init__(self, hidden: Tensor, weight: Tensor) -> None:
        self._h, self._w = hidden, weight
        self.hidden = torch.empty_like(hidden)
        self.weight = torch.zeros(weight.shape, dtype=_wide(hidden), device=weight.device)

    def add(self, part: slice, dz: Tensor, spec: HeadSpec) -> None:
        dtype = spec.compute or self._h.dtype
        dz = dz.to(dtype)
        self.hidden[part] = (dz @ self._w.to(dtype)).to(self.hidden.dtype)
        self.weight += dz.T @ self._h[part].to(dtype)


def candidate_logp(hidden: Tensor, weight: Tensor, ids: Tensor, spec: HeadSpec | None = None) -> Tensor:
    """Log-probs of given candidates. hidden: [n, d]; weight: [V, d]; ids: [n, K] int64. Returns [n, K], differentiable.

    A candidate that stands twice in a row receives both gradients.
    """
    spec = spec or HeadSpec()
    _check(spec)
    return _Candidates.apply(hidden, weight, ids, spec)  # type: ignore[no-untyped-call,no-any-return]


def divergence_of(log_p: Tensor, log_q: Tensor, kind: str, beta: float) -> tuple[Tensor, Tensor]:
    """([n] divergence, [n, V] dD/dlogits of p). log_p, log_q: [n, V].

    kl: KL(p||q).  reverse_kl: KL(q||p).  jsd: beta KL(q||m) + (1-beta) KL(p||m), m = (1-beta) p + beta q.
    With h = dD/dp up to a constant, dD/dz_j = p_j (h_j - sum_v p_v h_v).  0 log 0 is 0.
    """
    p, q = log_p.exp(), log_q.exp()
    if kind == "kl":
        h = torch.where(p > 0, log_p - log_q, torch.zeros_like(p))
        value = (p * h).sum(-1)
        return value, p * (h - value[:, None])
    if kind == "reverse_kl":
        value = torch.where(q > 0, q * (log_q - log_p), torch.zeros_like(q)).sum(-1)
        return value, p - q
    # From the logarithms: where p and q both underflow, m.log() would have a gradient of 0/0.
    log_m = torch.logaddexp(log_p + math.log1p(-beta), log_q + math.log(beta))
    h = torch.where(p > 0, log_p - log_m, torch.zeros_like(p))
    other = torch.where(q > 0, q * (log_q - log_m), torch.zeros_like(q)).sum(-1)
    own = (p * h).sum(-1)
    return beta * other + (1 - beta) * own, (1 - beta) * p * (h - own[:, None])


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, other: tuple[Tensor, Tensor], kind: str, beta: float, spec: HeadSpec
    ) -> Tensor:
        rows = chunk_rows(len(weight), _wide(hidden), spec.budget)
        values = []
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            log_q = _log_softmax(other[0][part], other[1], spec)
            values.append(divergence_of(_log_softmax(hidden[part], weight, spec), log_q, kind, beta)[0])
        ctx.save_for_backward(hidden, weight, *other)
        ctx.settings = (kind, beta, spec)
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, other_hidden, other_weight = ctx.saved_tensors
        kind, beta, spec = ctx.settings
        rows = chunk_rows(len(weight), _wide(hidden), spec.budget)
        sums = _Sums(hidden, weight)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            log_q = _log_softmax(other_hidden[part], other_weight, spec)
            dz = divergence_of(_log_softmax(hidden[part], weight, spec), log_q, kind, beta)[1]
            dz = dz * (grads[0][part, None] * (spec.scale / spec.temperature))
            sums.add(part, dz, spec)
        return sums.hidden, sums.weight.to(weight.dtype), None, None, None, None


def with_tail(logp: Tensor) -> Tensor:
    """[n, K] log-probs of some tokens and, last, of all others together. Returns [n, K + 1].

    Source: lasgroup/SDPO: core_algos.py, whose bound of 1e-7 on the tail's probability is kept.
    """
    total = logp.logsumexp(-1, keepdim=True).clamp(max=-1e-7)
    return torch.cat([logp, (-torch.expm1(total)).log()], dim=-1)


def top_divergence(
    hidden: Tensor,
    weight: Tensor,
    other_hidden: Tensor,
    other_weight: Tensor,
    k: int,
    kind: str = "kl",
    beta: float = 0.5,
    spec: HeadSpec | None = None,
) -> Tensor:
    """`divergence` over the k likeliest tokens of this model and one bucket for the rest. Same arguments and result.

    No gradient flows through the choice of the k tokens.  Not above `divergence`: putting tokens into one bucket never
    raises one of these divergences.
    """
    if kind not in DIVERGENCES:
        raise unknown("divergence", kind, DIVERGENCES)
    ids, _ = top_tokens(hidden, weight, k, spec)
    own = with_tail(candidate_logp(hidden, weight, ids, spec))
    with torch.no_grad():
        other = with_tail(candidate_logp(other_hidden, other_weight, ids, spec))
    return divergence_of(own, other, kind, beta)[0]


def divergence(
    hidden: Tensor,
    weight: Tensor,
    other_hidden: Tensor,
    other_weight: Tensor,
    kind: str = "kl",
    beta: float = 0.5,
    spec: HeadSpec | None = None,
) -> Tensor:
    """Divergence of this model's next-token distribution p from another's q, over the whole vocabulary, per row.

    hidden: [n, d], weight: [V, d]; other_hidden: [n, d'], other_weight: [V, d'], which receive no gradient.
    kind: see `divergence_of`.  Returns [n] nats, differentiable in hidden and weight.
    """
    spec = spec or HeadSpec()
    _check(spec)
    if kind not in DIVERGENCES:
        raise unknown("divergence", kind, DIVERGENCES)
    if not 0 < beta < 1:
        raise ConfigError(f"beta of a Jensen-Shannon divergence must lie between 0 and 1, got {beta}")
    other = (other_hidden.detach(), other_weight.detach())
    return _Divergence.apply(hidden, weight, other, kind, beta, spec)  # type: ignore[no-untyped-call,no-any-return]


def place_statistics(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    place: Tensor,
    group: Tensor,
    measure: Measure,
    spec: HeadSpec,
) -> Tensor:
    """`measure` of all rows that share a place, given to each of them, without gradient. hidden: [n, d]; place: [n] int.

    group: [n] size of the row's group.  See `unipo.parts.part.Scorer.per_place`.  Rows are worked off in whole
    places, a quarter of the budget at a time (a measure makes copies); one place alone may exceed it.
    """
    order = torch.argsort(place, stable=True)
    _, slot, count = place[order].unique_consecutive(return_inverse=True, return_counts=True)
    h, w, b = _cast(hidden, weight, bias, spec)
    room = max(1, chunk_rows(len(weight), _wide(hidden), spec.budget) // 4)
    out = torch.zeros(len(hidden), dtype=_wide(hidden), device=hidden.device)
    sizes = count.tolist()
    start = first = 0
    with torch.no_grad():
        while first < len(sizes):
            last, rows = first + 1, sizes[first]
            while last < len(sizes) and rows + sizes[last] <= room:
                rows += sizes[last]
                last += 1
            chosen = order[start : start + rows]
            own = slot[start : start + rows] - first
            heads = count[first:last].cumsum(0) - count[first:last]
            logp = _logits(h[chosen], w, b, spec).log_softmax(-1)
            out[chosen] = measure(logp, own, group[chosen][heads]).to(out.dtype)[own]
            first, start = last, start + rows
    return out
