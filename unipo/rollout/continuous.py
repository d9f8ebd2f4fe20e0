"""Sampling responses of continuous tokens: every step but the last is a mixture of embeddings.

Prompts are prefilled once per group and keys and values are cached, as for ordinary tokens; all responses have the
same number of steps, so rows start and end together.  Random numbers depend only on the response's seed, the step and
their place in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.layout import Layout
from unipo.parts.continuous import Chance, SoftTarget
from unipo.policy.continuous import ContinuousPolicy, embedding_table, mixed, token_steps
from unipo.policy.packing import make_plan
from unipo.rollout.cache import DecodeState, Prefill, first_state
from unipo.rollout.decoder import ModelDecoder
from unipo.rollout.engine import EngineStats, Request, Rollout, Sampling
from unipo.rollout.rows import Draft
from unipo.rollout.sampling import choose, mix, sample_seed, uniform


def step_chance(seed: Tensor, step: int) -> Chance:
    """The random numbers of one step of every row. seed: [n] int64."""
    own = mix(seed + step + 1)

    def chance(first: int, count: int) -> Tensor:
        return uniform(own[:, None], torch.arange(first, first + count, device=seed.device)[None, :])

    return chance


class ContinuousEngine:
    """Generates with a `ContinuousPolicy`. steps: per response; max_rows: responses written at once.

    Temperature 0 is base CoT2: the whole softmax is fed back, E^T alpha_t, and the last token is the likeliest.  Those
    responses carry no step columns and cannot be trained on.
    """

    def __init__(self, policy: ContinuousPolicy, steps: int, max_rows: int = 128) -> None:
        if max_rows < 1 or steps < 1:
            raise ConfigError(f"max_rows and steps must be at least 1, got {max_rows} and {steps}")
        self.policy, self.steps, self.max_rows = policy, steps, max_rows
        self.exact = policy.spec.compute != "bfloat16" and policy.spec.weights != "bfloat16"
        self.stats = EngineStats()

    def sync(self) -> None:
        """Nothing to do: every `generate` reads the policy's weights afresh."""

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], sampling: Sampling, progress: Callable[[int], None] | None = None
    ) -> list[list[Rollout]]:
        """See `unipo.rollout.engine.Engine.generate`; steps are mixtures of embeddings."""
        self._check(requests, sampling)
        start = time.perf_counter()
        decoder = ModelDecoder(self.policy, "continuous tokens")
        self.stats = EngineStats(decoder=decoder.name)
        drafts = [
            Draft(i, s, sample_seed(r.seed, r.first + s), self.steps)
            for i, r in enumerate(requests)
            for s in range(r.n)
        ]
        results: list[list[Rollout]] = [[] for _ in requests]
        for at in range(0, len(drafts), self.max_rows):
            chunk = drafts[at : at + self.max_rows]
            for draft, rollout in zip(chunk, self._write(decoder, requests, chunk, sampling), strict=True):
                results[draft.request].append(rollout)
            if progress is not None:
                progress(at + len(chunk))
        self.stats.seconds = time.perf_counter() - start
        self.stats.sampled = self.steps * len(drafts)
        return results

    def _check(self, requests: Sequence[Request], sampling: Sampling) -> None:
        if sampling.temperature > 0 and not sampling.whole:
            raise ConfigError("continuous tokens are sampled from the whole distribution: top_k = 0 and top_p = 1")
        if sampling.stop:
            raise ConfigError("a response of continuous tokens ends after its last step; leave stop texts out")
        if sampling.max_tokens < self.steps:
            raise ConfigError(f"max_tokens {sampling.max_tokens} is less than the {self.steps} steps of a response")
        if sampling.temperature > 0 and isinstance(self.policy.step, SoftTarget):
            raise ConfigError("this policy was made for soft targets, which are not sampled; use temperature 0")
        for i, request in enumerate(requests):
            if len(request.prompt) == 0 or request.n < 1:
                raise DataError(f"request {i} needs a prompt and at least one response, got n={request.n}")
            if len(request.prefix) or 0 < request.limit < self.steps:
                raise ConfigError(
                    f"request {i}: a response of continuous tokens is written whole; it cannot be continued from the ids "
                    "of its first tokens, nor cut (leave out parts that sample on from the middle of responses)"
                )
            if len(request.prompt) + self.steps > self.policy.context_window:
                raise DataError(f"request {i}: the prompt and {self.steps} steps do not fit the model's positions")

    def _write(
        self, decoder: ModelDecoder, requests: Sequence[Request], drafts: list[Draft], sampling: Sampling
    ) -> list[Rollout]:
        """All steps of these rows."""
        hidden, state = self._prefill(decoder, requests, drafts)
        seed = torch.tensor([d.seed for d in drafts], dtype=torch.int64, device=hidden.device)
        fed: list[_Step] = []
        for t in range(self.steps - 1):
            step, inputs = self._step(decoder.logits(hidden), sampling, step_chance(seed, t))
            fed.append(step)
            state.begin_step()
            with self.policy._autocast():
                out = decoder.body(
                    inputs_embeds=inputs[:, None],
                    position_ids=state.positions[:, None],
                    use_cache=False,
                    unipo_plan=state,
                )
            hidden = out.last_hidden_state[:, 0]
            state.end_step()
            self.stats.steps += 1
            self.stats.positions += len(drafts)
        chance = step_chance(seed, self.steps - 1)(0, 1)[:, 0]
        fed.append(_Step(*choose(decoder.logits(hidden), sampling, chance)))
        return _rollouts(fed)

    def _prefill(
        self, decoder: ModelDecoder, requests: Sequence[Request], drafts: list[Draft]
    ) -> tuple[Tensor, DecodeState]:
        """Run the prompts of these rows once each. Returns ([R, d] hidden states that predict the first step, cache)."""
        place = {request: i for i, request in enumerate(dict.fromkeys(d.request for d in drafts))}
        device = self.policy.device
        context = torch.tensor([t for i in place for t in requests[i].prompt], dtype=torch.int64, device=device)
        lengths = [len(requests[i].prompt) for i in place]
        layout = Layout.of([0] * len(place), [1] * len(place), lengths).to(device)
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        prefill = Prefill(make_plan(Batch.of(layout, context=context, tokens=empty, trainable=empty.bool())))
        hidden = decoder.prefill(prefill)
        rows = torch.tensor([place[d.request] for d in drafts], dtype=torch.int64, device=device)
        self.stats.prompts += len(context)
        ends = layout.context_starts + layout.context_lengths - 1
        return hidden[ends][rows], first_state(prefill, layout, rows, self.steps)

    def _step(self, logits: Tensor, sampling: Sampling, chance: Chance) -> tuple[_Step, Tensor]:
        """(one continuous token per row, [R, d] what is fed back). logits: [R, V], before temperature."""
        rule = self.policy.step
        causal = self.policy.causal
        if sampling.temperature == 0:
            alpha = logits.softmax(-1)
            table, scale = embedding_table(causal)
            zero = alpha.new_zeros(len(alpha))
            return _Step(alpha.argmax(-1), zero, zero), alpha.to(table.dtype) @ table * scale
        log_p = logits.div_(sampling.temperature * rule.temperature).log_softmax(-1)
        ids, log_weights = rule.draw(log_p, chance)
        logp = rule.score(log_p.gather(1, ids), log_weights)
        p = log_p.exp()
        entropy = -(p * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)
        token = ids.gather(1, log_weights.argmax(-1, keepdim=True)).squeeze(1)
        return _Step(token, logp, entropy, (ids, log_weights)), mixed(causal, ids, log_weights)


@dataclass(frozen=True)
class _Step:
    """One step of all rows. token, logp, entropy: [R]; drawn: ([R, W] ids, [R, W] log-weights), None for an ordinary
    token or a whole softmax."""

    token: Tensor
    logp: Tensor
    entropy: Tensor
    drawn: tuple[Tensor, Tensor] | None = None


def _rollouts(fed: list[_Step]) -> list[Rollout]:
    """One rollout per row, with the step columns where all continuous steps have them."""
    tokens = torch.stack([s.token for s in fed], 1).cpu()
    logp = torch.stack([s.logp.double() for s in fed], 1).cpu()
    entropy = torch.stack([s.entropy.double() for s in fed], 1).cpu()
    columns: dict[str, Tensor] = {}
    drawn = [s.drawn for s in fed[:-1] if s.drawn is not None]
    if len(drawn) == len(fed) - 1:
        width = max((ids.shape[1] for ids, _ in drawn), default=1)
        last = token_steps(tokens[:, -1], width)
        ids = torch.stack([*(ids.cpu() for ids, _ in drawn), last["step_ids"]], 1)
        weights = torch.stack([*(w.cpu() for _, w in drawn), last["step_log_weights"]], 1)
        columns = {"step_ids": ids, "step_log_weights": weights}
    return [
        Rollout(tokens[i], logp[i], entropy[i], False, columns={n: x[i].clone() for n, x in columns.items()})
        for i in range(len(tokens))
    ]
