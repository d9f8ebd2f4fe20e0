"""Log-probability and entropy straight from hidden states; the logits never exist all at once.

Per row:  z = cap(h W^T + b) / tau;  lse = logsumexp(z);  logp = z_y - lse;  H = lse - sum_j p_j z_j
Backward: dz = g (onehot(y) - p) - e p (log p + H);  dh = dz/tau W;  dW += (dz/tau)^T h
for g = dL/dlogp and e = dL/dH.  Rows are worked off in chunks of `budget` bytes of float32 logits; if all rows
fit into one budget the probabilities are kept for the backward instead of being computed twice.
Log-probs and entropies are float32 (float64 for float64 inputs) whatever the dtype of the matrix product: in
bfloat16 a log-prob near 10 has a spacing of 1/16 and a ratio would be off by percents.

Source: practice; Cut Cross-Entropy (arXiv 2411.09009), Liger Kernel (arXiv 2410.10989), verl FusedLinearForPPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BUDGET_BYTES = 192 * 2**20


@dataclass(frozen=True)
class HeadRows:
    """What is already known of some rows. logp, entropy: [R].  p: [R, V] probabilities, None if they were not kept."""

    logp: Tensor
    entropy: Tensor
    p: Tensor | None


@dataclass(frozen=True)
class HeadSpec:
    """How logits are made from hidden states. temperature: of the distribution that is scored.

    softcap: z <- c tanh(z / c) before the temperature (Gemma 2).  scale: z <- scale z before that (Cohere, Granite).
    compute: dtype of the matrix products (None: that of the hidden states).
    """

    temperature: float = 1.0
    softcap: float | None = None
    scale: float = 1.0
    compute: torch.dtype | None = None
    budget: int = BUDGET_BYTES
    entropy: bool = False


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, spec: HeadSpec) -> Tensor:
    """[n, V] scaled, capped, tempered logits in at least float32. hidden: [n, d] and weight: [V, d], one dtype."""
    z = torch.nn.functional.linear(hidden, weight, bias)
    z = z if z.dtype in (torch.float32, torch.float64) else z.float()
    if spec.scale != 1.0:
        z = z.mul_(spec.scale)
    if spec.softcap is not None:
        z = z.div_(spec.softcap).tanh_().mul_(spec.softcap)
    return z if spec.temperature == 1.0 else z.div_(spec.temperature)


def _reduce(z: Tensor, target: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """([n] log-prob of the target, [n] entropy if asked, [n, V] probabilities). z: [n, V], destroyed.

    The likeliest token gives back the log-sum-exp without a second pass of exponentials: lse = max z - log max p.
    """
    p = z.softmax(-1)
    lse = z.amax(-1) - p.amax(-1).log_()
    logp = z.gather(1, target[:, None]).squeeze(1) - lse
    if not entropy:
        return logp, None, p
    # Where p underflows to 0 a logit of -inf would make 0 * -inf.
    return logp, lse - z.clamp_(min=torch.finfo(z.dtype).min).mul_(p).sum(-1), p


class _LinearLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        spec: HeadSpec,
        known: HeadRows | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.spec = spec
        if known is not None:
            entropy = known.entropy if spec.entropy else known.entropy[:0]
            ctx.save_for_backward(hidden, weight, bias, target, entropy, known.p)
            return known.logp, entropy
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        n, vocab = len(hidden), len(weight)
        h, w, b = _cast(hidden, weight, bias, spec)
        rows = chunk_rows(vocab, wide, spec.budget)
        logp = torch.empty(n, dtype=wide, device=hidden.device)
        entropy = torch.empty(n if spec.entropy else 0, dtype=wide, device=hidden.device)
        keep = n <= rows and spec.softcap is None and (ctx.needs_input_grad[0] or ctx.needs_input_grad[1])
        kept: Tensor | None = None
        for start in range(0, n, rows):
            part = slice(start, start + rows)
            z = _logits(h[part], w, b, spec)
            logp[part], ent, p = _reduce(z, target[part], spec.entropy)
            if ent is not None:
                entropy[part] = ent
            if keep:
                kept = p
            del z, p  # or the next chunk would be made beside them
        ctx.save_for_backward(hidden, weight, bias, target, entropy, kept)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, entropy, kept = ctx.saved_tensors
        spec: HeadSpec = ctx.spec
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        h, w, b = _cast(hidden, weight, bias, spec)
        rows = chunk_rows(len(weight), wide, spec.budget)
        dh = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        dw: Tensor | None = None
        db = torch.zeros(len(weight), dtype=wide, device=weight.device) if bias is not None else None
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            dz = _logit_gradient(h[part], w, b, target[part], grads, part, entropy, kept, spec)
            if db is not None:
                db += dz.sum(0)
            dz = dz.to(h.dtype)
            if dh is not None:
                dh[part] = (dz @ w).to(hidden.dtype)
            if ctx.needs_input_grad[1]:
                # Chunks are summed in the wide dtype: a narrow sum would lose what the later ones add.
                share = (dz.T @ h[part]).to(wide) if dw is None or dz.dtype != wide else None
                dw = share if dw is None else dw.add_(share) if share is not None else dw.addmm_(dz.T, h[part])
            del dz
        if ctx.needs_input_grad[1] and dw is None:
            dw = torch.zeros_like(weight)
        return (
            dh,
            None if dw is None else dw.to(weight.dtype),
            None if db is None or bias is None else db.to(bias.dtype),
            None,
            None,
            None,
        )


def _logit_gradient(
    h: Tensor,
    w: Tensor,
    b: Tensor | None,
    target: Tensor,
    grads: tuple[Tensor, ...],
    part: slice,
    entropy: Tensor,
    kept: Tensor | None,
    spec: HeadSpec,
) -> Tensor:
    """[n, V] dL / d(h W^T + b) for one chunk."""
    g = grads[0][part]
    slope: Tensor | None = None
    z: Tensor | None = None
    if kept is not None:
        p = kept.clone() if spec.entropy else kept  # without entropy the buffer is used up here
    else:
        z = _logits(h, w, b, spec)
        if spec.softcap is not None:
            slope = 1 - (z * (spec.temperature / spec.softcap)) ** 2
        p = z.softmax(-1)
    extra: Tensor | None = None
    if spec.entropy and grads[1] is not None:
        e = grads[1][part]
        # In the buffer of the logits, which are no longer needed. 0 log 0 is 0.
        extra = p.clone() if z is None else z.copy_(p)
        extra.clamp_(min=torch.finfo(p.dtype).tiny).log_().add_(entropy[part][:, None]).mul_(p).mul_(e[:, None])
    dz = p.mul_(-g[:, None])
    dz.scatter_add_(1, target[:, None], g[:, None].to(dz.dtype))
    if extra is not None:
        dz -= extra
    if slope is not None:
        dz *= slope
    factor = spec.scale / spec.temperature
    return dz if factor == 1.0 else dz.mul_(factor)


def _cast(hidden: Tensor, weight: Tensor, bias: Tensor | None, spec: HeadSpec) -> tuple[Tensor, Tensor, Tensor | None]:
    dtype = spec.compute or hidden.dtype
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def chunk_rows(vocab: int, dtype: torch.dtype, budget: int) -> int:
    """Rows per chunk so that one chunk of logits stays within `budget` bytes (at least one row)."""
    return max(1, budget // (vocab * dtype.itemsize))


def linear_logp(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    spec: HeadSpec | None = None,
    bias: Tensor | None = None,
    known: HeadRows | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target, and entropy if `spec.entropy`. Differentiable once.

    hidden: [n, d]; weight: [V, d]; bias: [V]; target: [n] int64 in [0, V).
    Returns ([n] nats, [n] nats or [0]) in float32, float64 for float64 inputs.  Peak extra memory is two chunks of
    `spec.budget` bytes (three with soft-capping) whatever n and V.  known: log-probs (and probabilities) of these very
    rows, not computed again.
    """
    logp, entropy = _LinearLogp.apply(hidden, weight, bias, target, spec or HeadSpec(), known)  # type: ignore[no-untyped-call]
    return logp, entropy
