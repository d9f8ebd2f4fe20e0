"""Choosing the next token, reproducibly and independent of who else is in the batch.

Every choice uses one uniform number that depends only on (seed of the response, position), so a response does not
change when rows are refilled, compacted or spread over ranks, up to float noise in the logits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unipo.chance import mix, uniform, wrapped
from unipo.rollout.engine import Sampling

__all__ = ["choose", "mix", "sample_seed", "truncate", "uniform"]

_DIRECT = 2048  # vocabulary up to which one running sum is cheaper than two
_BLOCK = 64


def sample_seed(seed: int, sample: int) -> int:
    """The seed of response number `sample` of a request."""
    return int(mix(torch.tensor(wrapped(seed * 1_000_003 + sample + 1))))


def truncate(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits with what top-k and top-p cut off at -inf. logits: [n, V]; always keeps the likeliest token."""
    if sampling.top_k and sampling.top_k < logits.shape[-1]:
        bound = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < bound, float("-inf"))
    if sampling.top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        cut = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
        logits = logits.masked_fill(cut, float("-inf"))
    return logits


class Choice(NamedTuple):
    """One token per row. token: [n] int64; logp, entropy: [n]."""

    token: Tensor
    logp: Tensor
    entropy: Tensor


def choose(logits: Tensor, sampling: Sampling, chance: Tensor, keep_p: Tensor | None = None) -> Choice:
    """Sample one token per row. logits: [n, V] float32 or wider, before temperature; destroyed.  chance: [n] float64
    in [0, 1), see `uniform`; not read when the choice is greedy.

    Log-prob, entropy (nats) and probabilities are of the distribution actually sampled, truncation included.  Greedy
    choices have log-prob 0 and entropy 0.  keep_p: [n, V] that receives the probabilities of a sampled choice.
    """
    if sampling.temperature == 0:
        zero = torch.zeros(len(logits), dtype=logits.dtype, device=logits.device)
        return Choice(logits.argmax(-1), zero, zero)
    z = logits if sampling.temperature == 1.0 else logits.div_(sampling.temperature)
    if not sampling.whole:
        z = truncate(z, sampling)
    p = z.softmax(-1) if keep_p is None else torch.ops.aten._softmax.out(z, -1, False, out=keep_p)
    token = _pick(p, chance)
    # The likeliest token gives back the log-sum-exp without a second pass of exponentials: lse = max z - log max p.
    lse = z.amax(-1) - p.amax(-1).log_()
    logp = z.gather(-1, token[:, None]).squeeze(-1) - lse
    # A token that cannot be sampled has z = -inf, and 0 * -inf is not 0.
    z = z.clamp_(min=torch.finfo(z.dtype).min)
    entropy = lse - (p.mul_(z) if keep_p is None else z.mul_(p)).sum(-1)
    return Choice(token, logp, entropy)


def _pick(p: Tensor, chance: Tensor) -> Tensor:
    """[n] the token at which the running sum of probabilities first exceeds chance * total. p: [n, V]; chance: [n].

    Long rows are searched in two steps, block then token, so that only block sums run over the vocabulary.
    A token (or block) of zero probability leaves the running sum where it was and is never the first to exceed.
    """
    rows, vocab = p.shape
    if vocab <= _DIRECT:
        return _search(p, chance)[0]
    spare = -vocab % _BLOCK
    blocks = (torch.nn.functional.pad(p, (0, spare)) if spare else p).view(rows, -1, _BLOCK)
    block, inside = _search(blocks.sum(-1), chance)
    token, _ = _search(blocks[torch.arange(rows, device=p.device), block], inside)
    return block * _BLOCK + token


def _search(mass: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """(which entry [n], how far into it [n] in [0, 1)). mass: [n, m] non-negative; chance: [n] in [0, 1)."""
    running = mass.double().cumsum(-1)
    point = chance[:, None] * running[:, -1:]
    found = torch.searchsorted(running, point, right=True).clamp_(max=mass.shape[-1] - 1)
    own = mass.gather(-1, found).double()
    inside = (point - running.gather(-1, found) + own) / own
    return found.squeeze(-1), inside.squeeze(-1).clamp_(0.0, 1 - 2.0**-40)
