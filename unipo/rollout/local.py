"""In-process generation with the policy's own weights: nothing to synchronise, log-probs exact to float noise.

Prompts are prefilled once per group.  Rows that finish are dropped, and refilled from the queue, so that the
batch stays full; which rows sit together never changes what any of them samples (see `unipo.rollout.sampling`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.layout import Layout
from unipo.policy.model import Policy
from unipo.policy.packing import make_plan
from unipo.rollout.cache import DecodeState, LayerCache, Prefill
from unipo.rollout.decoder import Decoder, decoder_for
from unipo.rollout.engine import Draft, EngineStats, Request, Rollout, Sampling
from unipo.rollout.sampling import choose, sample_seed


@dataclass(frozen=True)
class _Rows:
    """The rows being written: drafts and, aligned with them, last token, seed and tokens written so far."""

    drafts: list[Draft]
    token: Tensor
    seed: Tensor
    written: Tensor


class LocalEngine:
    """Generates with a `Policy`. max_rows: responses written at once.  end_ids: tokens that end a response."""

    def __init__(self, policy: Policy, max_rows: int = 128, end_ids: Sequence[int] | None = None) -> None:
        if max_rows < 1:
            raise ConfigError(f"max_rows must be at least 1, got {max_rows}")
        self.policy = policy
        self.max_rows = max_rows
        self.exact = policy.spec.compute != "bfloat16" and policy.spec.weights != "bfloat16"
        self.stats = EngineStats()
        if end_ids is None:
            end_ids = _end_tokens(policy)
        self.end_ids = torch.tensor(sorted(set(end_ids)), dtype=torch.int64)
        self._decoder: Decoder | None = None

    def sync(self) -> None:
        """Forget derived copies of the weights; the next `generate` reads the policy afresh."""
        self._decoder = None

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] | None = None
    ) -> list[list[Rollout]]:
        self._check(requests, sampling)
        start = time.perf_counter()
        self.stats = EngineStats()
        self._decoder = decoder_for(self.policy)
        queue = deque(
            Draft(i, s, sample_seed(request.seed, s)) for i, request in enumerate(requests) for s in range(request.n)
        )
        results: list[list[Rollout | None]] = [[None] * r.n for r in requests]
        state: DecodeState | None = None
        rows: _Rows | None = None
        finished = 0
        while queue or rows is not None:
            state, rows = self._refill(requests, sampling, queue, state, rows)
            if any(not d.done for d in rows.drafts):
                rows = self._step(state, rows, sampling)
            for draft in rows.drafts:
                if draft.done and results[draft.request][draft.sample] is None:
                    results[draft.request][draft.sample] = draft.finish()
                    finished += 1
            if progress is not None:
                progress(finished)
            if all(d.done for d in rows.drafts):
                state = rows = None
        self.stats.seconds = time.perf_counter() - start
        self.stats.sampled = sum(len(r.tokens) for group in results for r in group if r is not None)
        self._decoder = None
        return [[r for r in group if r is not None] for group in results]

    # -- scheduling ------------------------------------------------------------------------------
    def _refill(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        queue: deque[Draft],
        state: DecodeState | None,
        rows: _Rows | None,
    ) -> tuple[DecodeState, _Rows]:
        """Drop finished rows and start queued ones, when that saves more than the copying costs."""
        if state is None or rows is None:
            return self._prefill(requests, sampling, _pop(queue, self.max_rows))
        alive = [i for i, d in enumerate(rows.drafts) if not d.done]
        free = self.max_rows - len(alive)
        refill = bool(queue) and free >= max(1, self.max_rows // 8)
        if refill or len(alive) < 0.75 * len(rows.drafts):
            state, rows = _keep(state, rows, alive)
        if refill:
            state, rows = _join(state, rows, *self._prefill(requests, sampling, _pop(queue, free)))
        return state, rows

    def _prefill(
        self, requests: Sequence[Request], sampling: Sampling, drafts: list[Draft]
    ) -> tuple[DecodeState, _Rows]:
        """Run the prompts of these drafts once each and sample their first tokens."""
        order = list(dict.fromkeys(d.request for d in drafts))
        lengths = [len(requests[i].prompt) for i in order]
        device = self.policy.device
        context = torch.tensor([t for i in order for t in requests[i].prompt], dtype=torch.int64, device=device)
        layout = Layout.of([0] * len(order), [1] * len(order), lengths).to(device)
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        batch = Batch.of(layout, context=context, tokens=empty, trainable=empty.bool())
        plan = make_plan(batch)
        prefill = Prefill(plan)
        hidden = self._model.prefill(prefill)
        last = hidden[layout.context_starts + layout.context_lengths - 1]
        row_prompt = torch.tensor([order.index(d.request) for d in drafts], dtype=torch.int64, device=device)
        state = DecodeState(row_prompt, layout.context_lengths, torch.zeros_like(row_prompt))
        for layer, keys in prefill.keys.items():
            context_k, context_v = (_padded(x, layout) for x in (keys, prefill.values[layer]))
            own = context_k.new_zeros(len(drafts), context_k.shape[1], 0, context_k.shape[3])
            state.layers[layer] = LayerCache(context_k, context_v, own, own.clone())
        state.arrange()
        self.stats.prompts += len(context)
        seed = torch.tensor([d.seed for d in drafts], dtype=torch.int64, device=device)
        rows = _Rows(drafts, torch.zeros_like(seed), seed, torch.zeros_like(seed))
        return state, self._sample(rows, self._model.logits(last)[row_prompt], sampling)

    @property
    def _model(self) -> Decoder:
        if self._decoder is None:
            self._decoder = decoder_for(self.policy)
        return self._decoder

    # -- one token per row -------------------------------------------------------------------------
    def _step(self, state: DecodeState, rows: _Rows, sampling: Sampling) -> _Rows:
        state.begin_step()
        hidden = self._model.step(rows.token, state.positions, state)
        state.end_step()
        self.stats.steps += 1
        self.stats.positions += len(rows.drafts)
        return self._sample(rows, self._model.logits(hidden), sampling)

    def _sample(self, rows: _Rows, logits: Tensor, sampling: Sampling) -> _Rows:
        token, logp, entropy = choose(logits, sampling, rows.seed, rows.written)
        ended = torch.isin(token, self.end_ids.to(token.device)).tolist()
        for draft, t, lp, h, end in zip(
            rows.drafts, token.tolist(), logp.tolist(), entropy.tolist(), ended, strict=True
        ):
            if draft.done:
                continue
            draft.tokens.append(t)
            draft.logp.append(lp)
            draft.entropy.append(h)
            stopped = end or self._hits_stop(draft, sampling)
            draft.truncated = not stopped and len(draft.tokens) >= sampling.max_tokens
            draft.done = stopped or draft.truncated
        return _Rows(rows.drafts, token, rows.seed, rows.written + 1)

    def _hits_stop(self, draft: Draft, sampling: Sampling) -> bool:
        if not sampling.stop:
            return False
        tail = self.policy.tokenizer.decode(draft.tokens[-max(len(s) for s in sampling.stop) - 8 :])
        return any(s in tail for s in sampling.stop)

    def _check(self, requests: Sequence[Request], sampling: Sampling) -> None:
        window = self.policy.context_window
        for i, request in enumerate(requests):
            if len(request.prompt) == 0:
                raise DataError(f"request {i} has an empty prompt: the first token would be conditioned on nothing")
            if request.n < 1:
                raise DataError(f"request {i} asks for {request.n} responses")
            if len(request.prompt) + sampling.max_tokens > window:
                raise DataError(
                    f"request {i}: a prompt of {len(request.prompt)} tokens and {sampling.max_tokens} new ones do not "
                    f"fit the model's {window} positions; shorten prompts or lower max_tokens"
                )


def _pop(queue: deque[Draft], most: int) -> list[Draft]:
    return [queue.popleft() for _ in range(min(most, len(queue)))]


def _end_tokens(policy: Policy) -> list[int]:
    ids = {policy.tokenizer.eos_token_id} if policy.tokenizer is not None else set()
    configured = getattr(policy.causal.generation_config, "eos_token_id", None)
    if configured is not None:
        ids |= set(configured) if isinstance(configured, list | tuple) else {configured}
    return [int(i) for i in ids if i is not None]


def _padded(rows: Tensor, layout: Layout) -> Tensor:
    """[N, kv_heads, d] context rows -> [P, kv_heads, C, d], zeros on the padding."""
    width = int(layout.context_lengths.max())
    prompts = layout.n_prompts
    if bool((layout.context_lengths == width).all()):
        return rows.view(prompts, width, *rows.shape[1:]).transpose(1, 2).contiguous()
    out = rows.new_zeros(prompts, width, *rows.shape[1:])
    real = torch.arange(width, device=rows.device)[None, :] < layout.context_lengths[:, None]
    out[real] = rows
    return out.transpose(1, 2).contiguous()


def _keep(state: DecodeState, rows: _Rows, alive: list[int]) -> tuple[DecodeState, _Rows]:
    """Only these rows, and only the prompts they still need."""
    index = torch.tensor(alive, dtype=torch.int64, device=rows.token.device)
    prompts, row_prompt = state.row_prompt[index].unique(return_inverse=True)
    kept = DecodeState(row_prompt, state.context_lengths[prompts], state.lengths[index])
    all_prompts = len(prompts) == len(state.context_lengths)
    for layer, c in state.layers.items():
        context_k = c.context_k if all_prompts else c.context_k[prompts]
        context_v = c.context_v if all_prompts else c.context_v[prompts]
        kept.layers[layer] = LayerCache(context_k, context_v, c.own_k[index], c.own_v[index])
    kept.arrange()
    return kept, _Rows([rows.drafts[i] for i in alive], rows.token[index], rows.seed[index], rows.written[index])


def _join(a: DecodeState, rows_a: _Rows, b: DecodeState, rows_b: _Rows) -> tuple[DecodeState, _Rows]:
    """Rows of `b` after those of `a`; a prompt that continues in `b` is simply cached twice until its rows finish."""
    row_prompt = torch.cat([a.row_prompt, b.row_prompt + len(a.context_lengths)])
    joined = DecodeState(
        row_prompt, torch.cat([a.context_lengths, b.context_lengths]), torch.cat([a.lengths, b.lengths])
    )
    for layer, x in a.layers.items():
        y = b.layers[layer]
        context = (_stack(getattr(x, name), getattr(y, name)) for name in ("context_k", "context_v"))
        own = (_stack(getattr(x, name), getattr(y, name)) for name in ("own_k", "own_v"))
        joined.layers[layer] = LayerCache(*context, *own)
    joined.arrange()
    rows = _Rows(
        rows_a.drafts + rows_b.drafts,
        torch.cat([rows_a.token, rows_b.token]),
        torch.cat([rows_a.seed, rows_b.seed]),
        torch.cat([rows_a.written, rows_b.written]),
    )
    return joined, rows


def _stack(x: Tensor, y: Tensor) -> Tensor:
    """Concatenate [n, kv, width, d] blocks whose widths differ, padding the narrower."""
    width = max(x.shape[2], y.shape[2])
    blocks = []
    for block in (x, y):
        if block.shape[2] < width:
            wide = block.new_zeros(block.shape[0], block.shape[1], width, block.shape[3])
            wide[:, :, : block.shape[2]] = block
            block = wide
        blocks.append(block)
    return torch.cat(blocks)
