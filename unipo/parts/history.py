"""Rewards that are measured against the best that was ever seen for the same prompt.

The memory is kept by the prompt's number in the data and lies in checkpoints.  It is updated after a batch was
judged, or, where the source says so, read together with the batch itself; evaluation never touches it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError, unknown
from unipo.layout import Layout
from unipo.parts.part import Shaping

RIGHT = 1.0  # score of a right response


def right_responses(batch: Batch) -> Tensor:
    """[S] bool: scored, and fully right by the task's own score."""
    right: Tensor = batch.scored & (batch.score >= RIGHT)
    return right


def remembered(memory: Mapping[str, Any], batch: Batch) -> list[Any]:
    """[P] what is remembered of each prompt, None where nothing is. Keys are texts, as JSON wants them."""
    return [memory.get(str(i)) for i in batch.prompt_id.tolist()]


# -- length ------------------------------------------------------------------------------------------
def cosine_length(ratio: Tensor, right: Tensor, floor: float = -0.7) -> Tensor:
    """HAPO's length reward: f = cos(pi/2 min(L/h, 2)); right: max(floor, f); wrong: min(0, f).

    ratio: [S] L/h, length over the record; right: [S] bool.  Returns [S]: right in [floor, 1], wrong in [-1, 0].
    Source: HAPO (arXiv 2505.11225); HCY123902/HAPO: utils.py, compute_len_reward.
    """
    f = torch.cos(math.pi / 2 * ratio.clamp(max=2))
    return torch.where(right, f.clamp(min=floor), f.clamp(max=0))


def linear_length(ratio: Tensor, right: Tensor, tolerance: float = 0.1, floor: float = -0.7) -> Tensor:
    """The linear form: right: 1 - L/h below h; 0 up to (1 + tolerance) h; then falling with slope 1/h to `floor`;
    wrong: the same without the part above 0, down to -1.

    ratio: [S] L/h; right: [S] bool.  Returns [S].
    Source: HCY123902/HAPO: utils.py, compute_len_reward_linear.
    """
    beyond = -(ratio - (1 + tolerance)).clamp(min=0)
    lowest = torch.where(right, torch.full_like(ratio, floor), torch.full_like(ratio, -1.0))
    return torch.where(right & (ratio < 1), 1 - ratio, torch.maximum(beyond, lowest))


@dataclass(frozen=True)
class HistoryLength(Shaping):
    """Reward a right response for being shorter than the shortest right one seen so far, and punish longer ones.

        R_i += weight * r(L_i / h_x),   h_x <- min(h_x, min length of this batch's right responses to x)
    L counts the tokens the policy wrote, without the one that ended the response.  A wrong response is only
    punished, and only beyond the record.  Without a record (or with one of 0 tokens) r = 0.  All responses of a
    batch see the same h.  weight in [0, 1] keeps every right response above every wrong one, by 0.3 at least.
    kind: 'cosine' (see `cosine_length`) or 'linear' (`linear_length`, with `tolerance`).  record: 'min', or 'mean',
    the mean length of all right responses seen.
    Source: HAPO (arXiv 2505.11225); HCY123902/HAPO: utils.py, grpo_trainer.py.
    """

    source = "HAPO (arXiv 2505.11225); HCY123902/HAPO: utils.py, grpo_trainer.py"
    weight: float = 1.0
    floor: float = -0.7
    kind: str = "cosine"
    record: str = "min"
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in ("cosine", "linear"):
            raise unknown("HistoryLength.kind", self.kind, ("cosine", "linear"))
        if self.record not in ("min", "mean"):
            raise unknown("HistoryLength.record", self.record, ("min", "mean"))
        if not 0 <= self.weight <= 1 or not -1 < self.floor <= 0 or self.tolerance < 0:
            raise ConfigError(f"HistoryLength: 0 <= weight <= 1, -1 < floor <= 0, tolerance >= 0; got {self}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "score", "scored", "trainable", "truncated", "prompt_id")

    @property
    def state_key(self) -> str:
        return "history_length"

    def _lengths(self, batch: Batch) -> Tensor:
        """[S] tokens written by the policy, without the end token."""
        own = batch.layout.seq_count(batch.trainable)
        ended: Tensor = ~batch.truncated
        return (own - ended.to(own.dtype)).clamp(min=0)

    def _records(self, batch: Batch) -> Tensor:
        """[P] float64 h, 0 where there is none. 'min' keeps [shortest, count], 'mean' [sum, count]."""
        found = remembered(batch.states.get(self.state_key, {}), batch)
        per = [0.0 if f is None else (f[0] if self.record == "min" else f[0] / f[1]) for f in found]
        return torch.tensor(per, dtype=torch.float64, device=batch.layout.device)

    def __call__(self, batch: Batch) -> Tensor:
        reward: Tensor = batch.reward
        h = batch.layout.to_sequences(self._records(batch))
        ratio = self._lengths(batch) / torch.where(h > 0, h, torch.ones_like(h))
        right = right_responses(batch)
        if self.kind == "cosine":
            length = cosine_length(ratio, right, self.floor)
        else:
            length = linear_length(ratio, right, self.tolerance, self.floor)
        length = torch.where(h > 0, length, torch.zeros_like(length))
        return reward + self.weight * length.to(reward.dtype)

    def remember(self, batch: Batch) -> Mapping[str, Any]:
        memory = {k: list(v) for k, v in batch.states.get(self.state_key, {}).items()}
        owner = batch.prompt_id[batch.layout.seq_prompt].tolist()
        for i, length, right in zip(owner, self._lengths(batch).tolist(), right_responses(batch).tolist(), strict=True):
            if right:
                held = memory.setdefault(str(i), [length if self.record == "min" else 0, 0])
                held[0] = min(held[0], length) if self.record == "min" else held[0] + length
                held[1] += 1
        return memory

    def formula(self) -> str:
        if self.kind == "cosine":
            f = f"f = cos(pi/2 min(L_i/h, 2)); right: max({self.floor:g}, f), wrong: min(0, f)"
        else:
            f = f"right: 1 - L_i/h below h, 0 to {1 + self.tolerance:g} h, then -(L_i/h - {1 + self.tolerance:g}) >= {self.floor:g}; wrong: <= 0, >= -1"
        h = "shortest" if self.record == "min" else "mean length of any"
        return f"R_i += {self.weight:g} r,  {f};  h = {h} right response to x before this batch, r = 0 without"


# -- tool calls --------------------------------------------------------------------------------------
def tool_calls(trainable: Tensor, layout: Layout) -> Tensor:
    """[S] how many stretches of tokens that the policy did not write each response holds: one per tool's answer.

    trainable: [T] bool.
    """
    before = torch.cat([trainable.new_ones(1), trainable[:-1]]) if layout.n_tokens else trainable
    before = torch.where(layout.token_position == 0, torch.ones_like(before), before)
    return layout.seq_sum((~trainable & before).to(torch.int64))


def call_cost(m: Tensor, smooth: float) -> Tensor:
    """cos(m pi / (2m + smooth)): 1 without a call, falling to 0 with many. m: [S] calls.  Returns [S] in (0, 1].

    Source: OTC (arXiv 2504.14870), the form of OTC-PPO.
    """
    calls = m.to(torch.float64)
    return torch.cos(calls * math.pi / (2 * calls + smooth))


def call_efficiency(m: Tensor, n: Tensor, smooth: float) -> Tensor:
    """How near the number of calls m is to the fewest that are known to suffice, n.

        n = 0: cos(m pi / (2m + smooth));   n > 0: sin(f pi / (2n)),  f = 2nm / (m + n)
    m, n: [S], n >= 0.  Returns [S] in [0, 1]: 1 at m = n; m = n/2 and m = 2n score alike.
    Source: OTC (arXiv 2504.14870), the form of OTC-GRPO.
    """
    calls, best = m.to(torch.float64), n.to(torch.float64)
    some = torch.where(best > 0, best, torch.ones_like(best))
    # f pi / (2n) = pi m / (m + n), written so that m = n gives exactly pi/2
    return torch.where(best > 0, torch.sin(math.pi * calls / (calls + some)), call_cost(m, smooth))


@dataclass(frozen=True)
class CallCost(Shaping):
    """Multiply the reward by `call_cost`: fewer tool calls are better, whatever the question needs.

    calls: as in `CallEfficiency`.  Source: OTC (arXiv 2504.14870), OTC-PPO.
    """

    source = "OTC (arXiv 2504.14870), OTC-PPO"
    smooth: float = 4.0
    calls: str = ""

    def __post_init__(self) -> None:
        if self.smooth <= 0:
            raise ConfigError(f"{type(self).__name__}.smooth must be positive, got {self.smooth}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward", "scored", "reward_parts") if self.calls else ("reward", "scored", "trainable")

    def counted(self, batch: Batch) -> Tensor:
        """[S] int64 tool calls; 0 for the unscored."""
        if not self.calls:
            return torch.where(batch.scored, tool_calls(batch.trainable, batch.layout), 0)
        counts = []
        for i, (parts, scored) in enumerate(zip(batch.reward_parts, batch.scored.tolist(), strict=True)):
            count = parts.get(self.calls) if scored else 0
            if count is None or count < 0 or count != int(count):
                raise DataError(
                    f"response {i} has no whole number of tool calls in the reward's part {self.calls!r}, but "
                    f"{count!r} (parts: {', '.join(parts) or 'none'}); add 0*calls.py:function to the reward"
                )
            counts.append(int(count))
        return torch.tensor(counts, dtype=torch.int64, device=batch.layout.device)

    def __call__(self, batch: Batch) -> Tensor:
        reward: Tensor = batch.reward
        return reward * call_cost(self.counted(batch), self.smooth).to(reward.dtype)

    def formula(self) -> str:
        return f"R_i *= cos(m_i pi / (2 m_i + {self.smooth:g})),  m_i = tool calls"


@dataclass(frozen=True)
class CallEfficiency(CallCost):
    """Multiply the reward by `call_efficiency`: 1 at the fewest tool calls with which the question was ever solved.

    n is the fewest calls of any right response to the prompt, this batch's included: it is lowered before the
    rewards are computed, so no right response has fewer.  stored: keep n over the run (the paper's released
    results), instead of within the group.  Without any right response there is no n and the reward stays as it is
    (0 for a 0/1 reward).  smooth: the largest number of turns (4 for search, 3 for code in the paper).  calls: name
    of the reward part that counts calls; '' counts the stretches of tokens the policy did not write.
    The product keeps efficiency from paying for wrong answers; added to the reward it was reported unstable.
    Source: OTC (arXiv 2504.14870), OTC-GRPO; no public code.
    """

    source = "OTC (arXiv 2504.14870), OTC-GRPO"
    stored: bool = True

    @property
    def needs(self) -> tuple[str, ...]:
        return (*super().needs, "score", *(("prompt_id",) if self.stored else ()))

    @property
    def state_key(self) -> str | None:
        return "fewest_calls" if self.stored else None

    def _fewest(self, batch: Batch) -> Tensor:
        """[P] float64: fewest calls that sufficed, inf where nothing ever did."""
        fewest = batch.layout.group_min(self.counted(batch).to(torch.float64), right_responses(batch))
        if self.state_key is None:
            return fewest
        # A prompt may stand twice in a batch, where two passes over the data meet.
        best = {str(i): float("inf") for i in batch.prompt_id.tolist()}
        held = batch.states.get(self.state_key, {})
        for i, n in zip(batch.prompt_id.tolist(), fewest.tolist(), strict=True):
            best[str(i)] = min(best[str(i)], n, held.get(str(i), n))
        known = [best[str(i)] for i in batch.prompt_id.tolist()]
        return torch.tensor(known, dtype=torch.float64, device=fewest.device)

    def __call__(self, batch: Batch) -> Tensor:
        reward: Tensor = batch.reward
        n = batch.layout.to_sequences(self._fewest(batch))
        known = torch.isfinite(n)
        factor = call_efficiency(self.counted(batch), torch.where(known, n, torch.zeros_like(n)), self.smooth)
        return reward * torch.where(known, factor, torch.ones_like(factor)).to(reward.dtype)

    def remember(self, batch: Batch) -> Mapping[str, Any]:
        memory = dict(batch.states.get(self.state_key or "", {}))
        for i, fewest in zip(batch.prompt_id.tolist(), self._fewest(batch).tolist(), strict=True):
            if fewest < float("inf"):
                memory[str(i)] = min(int(fewest), memory.get(str(i), int(fewest)))
        return memory

    def formula(self) -> str:
        where = "ever" if self.stored else "in the group"
        return (
            f"R_i *= sin(pi m_i/(m_i + n)), or cos(m_i pi/(2 m_i + {self.smooth:g})) for n = 0;  "
            f"m_i = tool calls, n = fewest of a right response to x {where}"
        )
