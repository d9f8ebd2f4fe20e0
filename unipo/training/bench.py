"""One training step and one round of generation on forced lengths, timed: what the benchmarks run for unipo.

The step is the library's own: `LocalEngine` writes the answers, `judge` and `weigh` turn rewards into weighted
advantages, `Policy.columns` makes the live log-probs, `loss` is backpropagated, clipped and applied by AdamW.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from typing import Any

import torch

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.judge import judge, loss, required_tokens, weigh
from unipo.layout import Layout
from unipo.method import Method
from unipo.policy.loading import DTYPES, load_model, usable_device
from unipo.policy.model import Policy
from unipo.policy.spec import Compute, PolicySpec
from unipo.policy.tape import Tape
from unipo.registry import get_method
from unipo.rollout.engine import Request, Rollout, Sampling
from unipo.rollout.local import LocalEngine
from unipo.training.ranks import Ranks
from unipo.training.scorer import RankedScorer

CLIP_NORM = 1.0


def hashed_reward(tokens: Sequence[int]) -> float:
    """A number in [0, 1) from the answer's ids alone: costs nothing and gives advantages that are not zero."""
    return zlib.crc32(repr(list(tokens)).encode()) % 1000 / 1000


class StepBench:
    """A policy, its engine and its optimiser, with every answer exactly `max_tokens` long.

    model_dir: a model directory as `transformers` saves it; a tokenizer is not needed.  prompts: token ids.
    group_size: answers per prompt.  dtype: 'float32', or 'bfloat16' for autocast over float32 weights.
    threads: for torch; 0 leaves them as they are.  method: name in the catalogue.  micro_tokens: packed positions
    per forward and backward, 0 for no limit.  tape_mb, checkpointing, device: as in `PolicySpec`.
    """

    def __init__(
        self,
        model_dir: str,
        prompts: list[list[int]],
        group_size: int,
        max_tokens: int,
        dtype: Compute,
        lr: float,
        threads: int,
        method: str = "grpo-token",
        micro_tokens: int = 0,
        tape_mb: int = PolicySpec.tape_mb,
        checkpointing: bool = False,
        device: str = "cpu",
    ) -> None:
        if not prompts or group_size < 1 or max_tokens < 1:
            raise ConfigError(f"nothing to time: {len(prompts)} prompts x {group_size} answers of {max_tokens} tokens")
        if threads:
            torch.set_num_threads(threads)
        spec = PolicySpec(
            model=str(model_dir),
            compute=dtype,
            micro_tokens=micro_tokens,
            tape_mb=tape_mb,
            checkpointing=checkpointing,
            device=device,
        )
        self.policy = Policy(load_model(spec.model, DTYPES[spec.weights], usable_device(spec.device)), None, spec)
        self.engine = LocalEngine(self.policy, max_rows=len(prompts) * group_size, end_ids=())
        self.method: Method = get_method(method)
        self.prompts, self.group_size = prompts, group_size
        self.sampling = Sampling(max_tokens=max_tokens)
        self.optimiser = torch.optim.AdamW(self.policy.parameters(), lr=lr, weight_decay=0.0, fused=True)
        self.rounds = 0

    def generate(self) -> dict[str, Any]:
        """Write all answers once. Returns generation_s (seconds) and tokens (how many were written)."""
        start = self._now()
        groups = self._write()
        return {
            "generation_s": self._now() - start,
            "tokens": sum(len(rollout.tokens) for group in groups for rollout in group),
        }

    def step(self) -> dict[str, float]:
        """Generate, score and update once. Returns generation_s, update_s and their sum with scoring, step_s."""
        start = self._now()
        self.engine.tape = tape = self.policy.make_tape()
        groups = self._write()
        self.engine.tape = None
        written = self._now()
        batch = self._batch(groups)
        batch = weigh(self.method, judge(self.method, batch, RankedScorer(self.policy, Ranks())))
        scored = self._now()
        self._update(batch, tape)
        end = self._now()
        return {"generation_s": written - start, "update_s": end - scored, "step_s": end - start}

    def _now(self) -> float:
        """Seconds on the clock when all that was begun is done: an accelerator is handed work ahead of time."""
        if self.policy.device.type == "cuda":
            torch.cuda.synchronize(self.policy.device)
        return time.perf_counter()

    def _write(self) -> list[list[Rollout]]:
        self.rounds += 1
        requests = [Request(p, self.group_size, seed=self.rounds * 1_000_003 + i) for i, p in enumerate(self.prompts)]
        return self.engine.generate(requests, self.sampling)

    def _batch(self, groups: list[list[Rollout]]) -> Batch:
        answers = [rollout for group in groups for rollout in group]
        layout = Layout.of(
            [len(a.tokens) for a in answers], [len(group) for group in groups], [len(p) for p in self.prompts]
        )
        return Batch.of(
            layout,
            context=torch.tensor([token for prompt in self.prompts for token in prompt], dtype=torch.int64),
            tokens=torch.cat([a.tokens for a in answers]).cpu(),
            behaviour_logp=torch.cat([a.logp for a in answers]).cpu(),
            trainable=torch.ones(layout.n_tokens, dtype=torch.bool),
            taped=torch.cat(
                [a.tokens.new_full(a.tokens.shape, -1) if a.taped is None else a.taped for a in answers]
            ).cpu(),
            truncated=torch.tensor([a.truncated for a in answers]),
            scored=torch.ones(len(answers), dtype=torch.bool),
            reward=torch.tensor([hashed_reward(a.tokens.tolist()) for a in answers]),
        )

    def _update(self, batch: Batch, tape: Tape | None = None) -> None:
        pieces = list(batch.split_by_tokens(self.policy.spec.micro_tokens or None))
        for number, piece in enumerate(pieces, start=1):
            required = required_tokens(self.method, piece)
            if bool(required.any()):
                live = piece.with_columns(
                    None, **self.policy.columns(piece, required, tape=tape, final=number == len(pieces))
                )
                loss(self.method, live).total.backward()  # type: ignore[no-untyped-call]
        parameters = self.policy.parameters()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM, foreach=True)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.policy.updates += 1
