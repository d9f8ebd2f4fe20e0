"""In-process generation with the policy's own weights: nothing to synchronise, log-probs exact to float noise.

Prompts are prefilled once per group.  Rows that finish are dropped, and refilled from the queue, so that the
batch stays full; which rows sit together never changes what any of them samples (see `unipo.rollout.sampling`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unipo.batch import NO_IMAGES, Batch
from unipo.errors import ConfigError, DataError
from unipo.layout import Layout
from unipo.policy.model import Policy
from unipo.policy.packing import make_plan
from unipo.policy.sight import objection, sees
from unipo.policy.tape import Tape
from unipo.rollout.cache import DecodeState, Prefill, first_state, join_rows, keep_rows
from unipo.rollout.decoder import Decoder
from unipo.rollout.engine import EngineStats, Request, Rollout, Sampling
from unipo.rollout.lean import decoder_for
from unipo.rollout.rows import Draft, Rows
from unipo.rollout.sampling import choose, sample_seed

FIRST_ROOM = 64  # tokens per response that the cache has room for at first; it doubles


class LocalEngine:
    """Generates with a `Policy`. max_rows: responses written at once.  end_ids: tokens that end a response.

    tape: set it to keep what is computed for the update that follows (see `unipo.policy.tape`).
    """

    def __init__(self, policy: Policy, max_rows: int = 128, end_ids: Sequence[int] | None = None) -> None:
        if max_rows < 1:
            raise ConfigError(f"max_rows must be at least 1, got {max_rows}")
        self.policy = policy
        self.max_rows = max_rows
        self.exact = policy.spec.compute != "bfloat16" and policy.spec.weights != "bfloat16"
        self.stats = EngineStats()
        ending = policy.end_ids if end_ids is None else end_ids
        self.end_ids = torch.tensor(sorted(set(ending)), dtype=torch.int64)
        self._decoder: Decoder | None = None
        self.tape: Tape | None = None
        self._writing: Tape | None = None

    def sync(self) -> None:
        """Nothing to do: every `generate` reads the policy's weights afresh."""

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] | None = None
    ) -> list[list[Rollout]]:
        """See `unipo.rollout.engine.Engine.generate`."""
        self._check(requests, sampling)
        start = time.perf_counter()
        queue = deque(
            Draft(i, s, sample_seed(r.seed, r.first + s), r.room(sampling.max_tokens), tuple(r.prefix))
            for i, r in enumerate(requests)
            for s in range(r.n)
        )
        longest = max((len(r.prompt) for r in requests), default=0) + sampling.max_tokens
        self._decoder = decoder_for(self.policy, longest, min(self.max_rows, len(queue)))
        self.stats = EngineStats(decoder=self._decoder.name)
        # What is kept must be what the trainer would compute: the whole distribution at its own temperature.
        same = sampling.whole and sampling.temperature == self.policy.temperature
        self._writing = self.tape if same and self._decoder.record(self.tape) else None
        results: list[list[Rollout | None]] = [[None] * r.n for r in requests]
        try:
            self._write_all(self._decoder, requests, sampling, queue, results, progress)
        finally:
            self._decoder = self._writing = None  # copies of the weights are stale after the next update
        self.stats.seconds = time.perf_counter() - start
        self.stats.sampled = sum(len(r.tokens) for group in results for r in group if r is not None)
        return [[r for r in group if r is not None] for group in results]

    # -- scheduling ------------------------------------------------------------------------------
    def _write_all(
        self,
        decoder: Decoder,
        requests: Sequence[Request],
        sampling: Sampling,
        queue: deque[Draft],
        results: list[list[Rollout | None]],
        progress: Callable[[int], None] | None,
    ) -> None:
        state: DecodeState | None = None
        rows: Rows | None = None
        finished = 0
        while queue or rows is not None:
            if state is None or rows is None:
                state, rows = self._prefill(decoder, requests, sampling, _pop(queue, self.max_rows))
            else:
                state, rows = self._refill(decoder, requests, sampling, queue, state, rows)
                if rows.alive:
                    self._step(decoder, state, rows, sampling)
            for draft, rollout in rows.harvest():
                results[draft.request][draft.sample] = rollout
                finished += 1
            if progress is not None:
                progress(finished)
            if not rows.alive:
                state = rows = None

    def _refill(
        self,
        decoder: Decoder,
        requests: Sequence[Request],
        sampling: Sampling,
        queue: deque[Draft],
        state: DecodeState,
        rows: Rows,
    ) -> tuple[DecodeState, Rows]:
        """Drop finished rows and start queued ones, when that saves more than the copying costs.

        A row at its budget must go at once: the positions after it may not exist.
        """
        free = self.max_rows - rows.alive
        refill = bool(queue) and free >= max(1, self.max_rows // 8)
        if rows.alive < len(rows.drafts) and (refill or rows.alive < 0.75 * len(rows.drafts) or rows.exhausted):
            index = rows.alive_index()
            state, rows = keep_rows(state, index), rows.keep(index)
        if refill:
            fresh_state, fresh = self._prefill(decoder, requests, sampling, _pop(queue, free))
            state, rows = join_rows(state, fresh_state), rows.join(fresh)
        return state, rows

    def _prefill(
        self, decoder: Decoder, requests: Sequence[Request], sampling: Sampling, drafts: list[Draft]
    ) -> tuple[DecodeState, Rows]:
        """Run the prompts (and prefixes) of these drafts once for each request and sample their first tokens."""
        place = {request: i for i, request in enumerate(dict.fromkeys(d.request for d in drafts))}
        written = [[*requests[i].prompt, *requests[i].prefix] for i in place]
        lengths = [len(ids) for ids in written]
        device = self.policy.device
        context = torch.tensor([t for ids in written for t in ids], dtype=torch.int64, device=device)
        layout = Layout.of([0] * len(place), [1] * len(place), lengths).to(device)
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        prompts = Batch.of(layout, context=context, tokens=empty, trainable=empty.bool())
        images = [requests[i].images for i in place]
        if any(x is not None for x in images):
            prompts = prompts.with_columns(None, images=[NO_IMAGES if x is None else x for x in images])
        prefill = Prefill(make_plan(prompts))
        hidden = decoder.prefill(prefill)
        ends = layout.context_starts + layout.context_lengths - 1
        last = hidden[ends]
        row_prompt = torch.tensor([place[d.request] for d in drafts], dtype=torch.int64, device=device)
        state = first_state(prefill, layout, row_prompt, min(FIRST_ROOM, max(d.room for d in drafts)))
        self.stats.prompts += len(context)
        rows = Rows.start(drafts, sampling, device, taped=self._writing is not None)
        source = None if self._writing is None else ends[row_prompt] + self._writing.advance(len(context))
        self._sample(rows, decoder.logits(last)[row_prompt], sampling, source)
        return state, rows

    # -- one token per row -------------------------------------------------------------------------
    def _step(self, decoder: Decoder, state: DecodeState, rows: Rows, sampling: Sampling) -> None:
        state.begin_step()
        hidden = decoder.step(rows.token, state.positions, state)
        state.end_step()
        self.stats.steps += 1
        self.stats.positions += len(rows.drafts)
        source = None
        if self._writing is not None:
            source = torch.arange(len(hidden)) + self._writing.advance(len(hidden))
        self._sample(rows, decoder.logits(hidden), sampling, source)

    def _sample(self, rows: Rows, logits: Tensor, sampling: Sampling, source: Tensor | None) -> None:
        """One choice per row. source: [R] tape rows of the hidden states that the logits come from."""
        tape = self._writing
        chosen = choose(logits, sampling, rows.chance(), None if tape is None else tape.room_for_p(logits))
        taped = None
        if tape is not None and source is not None:
            taped = torch.arange(len(source)) + tape.keep_head(source, chosen.logp, chosen.entropy)
        rows.append(chosen.token, chosen.logp, chosen.entropy, self.end_ids, taped)
        if sampling.stop:
            # A stop text may begin in an earlier token; eight more cover texts whose tokens merge or split.
            reach = max(len(text) for text in sampling.stop) + 8
            for i, tail in rows.tails(reach):
                text = self.policy.tokenizer.decode(tail)
                if any(stop in text for stop in sampling.stop):
                    rows.stop(i)

    def _check(self, requests: Sequence[Request], sampling: Sampling) -> None:
        window = self.policy.context_window
        for i, request in enumerate(requests):
            if len(request.prompt) == 0:
                raise DataError(f"request {i} has an empty prompt: the first token would be conditioned on nothing")
            if request.images is not None and not sees(self.policy.causal):
                raise DataError(f"request {i} has images: {objection(self.policy.causal)}")
            if request.n < 1:
                raise DataError(f"request {i} asks for {request.n} responses")
            if request.limit < 0 or request.room(sampling.max_tokens) < 1:
                raise DataError(
                    f"request {i}: a prefix of {len(request.prefix)} tokens leaves no room for a new one in a budget of "
                    f"{sampling.max_tokens} (limit {request.limit}); raise max_tokens or shorten the prefix"
                )
            if len(request.prefix) and int(request.prefix[-1]) in self.end_ids.tolist():
                raise DataError(f"request {i}: its prefix ends with token {request.prefix[-1]}, which ends a response")
            if len(request.prompt) + sampling.max_tokens > window:
                raise DataError(
                    f"request {i}: a prompt of {len(request.prompt)} tokens and {sampling.max_tokens} new ones do not "
                    f"fit the model's {window} positions; shorten prompts or lower max_tokens"
                )
        if sampling.stop and self.policy.tokenizer is None:
            raise ConfigError("stop texts need a tokenizer, and this policy has none")


def _pop(queue: deque[Draft], most: int) -> list[Draft]:
    return [queue.popleft() for _ in range(min(most, len(queue)))]
