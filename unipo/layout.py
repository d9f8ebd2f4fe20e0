"""Where every token belongs: token -> sequence -> prompt, and the reductions over that map.

Nothing in unipo is padded, so no mean needs a mask to undo padding: a mean over a sequence is a
segment reduction over its tokens, a mean over a group one over its sequences.  `where` arguments
select *which* members count; they never multiply, so an infinity outside the selection cannot leak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

LEVELS = ("token", "sequence", "prompt", "context")


def segment_sum(x: Tensor, segment: Tensor, segments: int) -> Tensor:
    """Sum the rows of `x` by segment id. x: [n, ...], segment: [n] in [0, segments). Returns [segments, ...]."""
    out = torch.zeros(segments, *x.shape[1:], dtype=x.dtype, device=x.device)
    return out.index_add(0, segment, x)


def segment_extreme(x: Tensor, segment: Tensor, segments: int, largest: bool) -> Tensor:
    """Largest (or smallest) row per segment; the dtype's lowest (highest) value for an empty one. x: [n]."""
    info = torch.finfo(x.dtype) if x.dtype.is_floating_point else torch.iinfo(x.dtype)
    empty = (
        (float("-inf") if largest else float("inf")) if x.dtype.is_floating_point else info.min if largest else info.max
    )
    out = torch.full((segments,), empty, dtype=x.dtype, device=x.device)
    return out.scatter_reduce(0, segment, x, reduce="amax" if largest else "amin", include_self=True)


def _as_lengths(x: Tensor | Sequence[int], name: str) -> Tensor:
    given = torch.as_tensor(x)
    lengths = given.to(torch.int64)
    if lengths.dim() != 1 or bool((lengths < 0).any()) or bool((lengths != given).any()):
        raise ValueError(f"{name} must be one non-negative integer each, got {given.tolist()}")
    return lengths


@dataclass(frozen=True, eq=False)
class Layout:
    """The ragged shape of a batch.

    seq_lengths: [S] tokens after the prompt, per sequence (0 allowed).
    group_sizes: [P] sequences per prompt; the sequences of a prompt are adjacent.
    context_lengths: [P] tokens of each prompt, stored once per prompt however large its group.
    """

    seq_lengths: Tensor
    group_sizes: Tensor
    context_lengths: Tensor

    @staticmethod
    def of(
        seq_lengths: Tensor | Sequence[int],
        group_sizes: Tensor | Sequence[int] | None = None,
        context_lengths: Tensor | Sequence[int] | None = None,
    ) -> Layout:
        """Build from plain lists. Without group sizes every sequence is a group of its own."""
        lengths = _as_lengths(seq_lengths, "seq_lengths")
        sizes = torch.ones_like(lengths) if group_sizes is None else _as_lengths(group_sizes, "group_sizes")
        if context_lengths is None:
            context = torch.zeros_like(sizes)
        else:
            context = _as_lengths(context_lengths, "context_lengths")
        if int(sizes.sum()) != len(lengths):
            raise ValueError(f"group_sizes add up to {int(sizes.sum())}, but there are {len(lengths)} sequences")
        if len(context) != len(sizes):
            raise ValueError(f"{len(context)} context lengths for {len(sizes)} prompts")
        return Layout(lengths, sizes, context)

    # -- sizes -------------------------------------------------------------------------------
    @cached_property
    def n_tokens(self) -> int:
        return int(self.seq_lengths.sum())

    @property
    def n_sequences(self) -> int:
        """S, how many responses there are."""
        return len(self.seq_lengths)

    @property
    def n_prompts(self) -> int:
        """P, how many prompts there are."""
        return len(self.group_sizes)

    @cached_property
    def n_context(self) -> int:
        return int(self.context_lengths.sum())

    def size(self, level: str) -> int:
        """How many rows a column of this level has."""
        if level not in LEVELS:
            raise ValueError(f"unknown level {level!r}; the levels are {', '.join(LEVELS)}")
        return {
            "token": self.n_tokens,
            "sequence": self.n_sequences,
            "prompt": self.n_prompts,
            "context": self.n_context,
        }[level]

    # -- maps --------------------------------------------------------------------------------
    @cached_property
    def token_seq(self) -> Tensor:
        """[T] the sequence of each token."""
        index = torch.arange(self.n_sequences, device=self.device)
        return torch.repeat_interleave(index, self.seq_lengths, output_size=self.n_tokens)

    @cached_property
    def seq_prompt(self) -> Tensor:
        """[S] the prompt of each sequence."""
        index = torch.arange(self.n_prompts, device=self.device)
        return torch.repeat_interleave(index, self.group_sizes, output_size=self.n_sequences)

    @cached_property
    def token_prompt(self) -> Tensor:
        """[T] the prompt of each token."""
        return self.seq_prompt[self.token_seq]

    @cached_property
    def seq_starts(self) -> Tensor:
        """[S] index of each sequence's first token."""
        return self.seq_lengths.cumsum(0) - self.seq_lengths

    @cached_property
    def group_starts(self) -> Tensor:
        """[P] index of each prompt's first sequence."""
        return self.group_sizes.cumsum(0) - self.group_sizes

    @cached_property
    def context_starts(self) -> Tensor:
        """[P] index of each prompt's first context token."""
        return self.context_lengths.cumsum(0) - self.context_lengths

    @cached_property
    def token_position(self) -> Tensor:
        """[T] place of each token inside its sequence, from 0."""
        return torch.arange(self.n_tokens, device=self.device) - self.seq_starts[self.token_seq]

    @property
    def device(self) -> torch.device:
        """Where its tensors lie."""
        return self.seq_lengths.device

    def to(self, device: torch.device | str) -> Layout:
        """The same layout on another device."""
        return Layout(self.seq_lengths.to(device), self.group_sizes.to(device), self.context_lengths.to(device))

    # -- spreading ---------------------------------------------------------------------------
    def to_tokens(self, x_s: Tensor) -> Tensor:
        """Give each token the value of its sequence. x_s: [S, ...]. Returns [T, ...]."""
        self._check(x_s, "sequence")
        return x_s[self.token_seq]

    def to_sequences(self, x_p: Tensor) -> Tensor:
        """Give each sequence the value of its prompt. x_p: [P, ...]. Returns [S, ...]."""
        self._check(x_p, "prompt")
        return x_p[self.seq_prompt]

    # -- over the tokens of a sequence --------------------------------------------------------
    def seq_sum(self, x_t: Tensor, where: Tensor | None = None) -> Tensor:
        """Sum per sequence. x_t: [T, ...], where: [T] bool. Returns [S, ...]; 0 for an empty one."""
        self._check(x_t, "token")
        return segment_sum(_select(x_t, where), self.token_seq, self.n_sequences)

    def seq_count(self, where: Tensor | None = None) -> Tensor:
        """[S] int64: how many tokens (that satisfy `where`) each sequence has."""
        return self.seq_lengths if where is None else self.seq_sum(where.to(torch.int64))

    def seq_mean(self, x_t: Tensor, where: Tensor | None = None) -> Tensor:
        """Mean per sequence; 0 where nothing counts. x_t: [T], where: [T] bool. Returns [S]."""
        return self.seq_sum(x_t, where) / self.seq_count(where).clamp(min=1)

    def seq_max(self, x_t: Tensor) -> Tensor:
        """[S] largest token value; -inf for an empty sequence."""
        self._check(x_t, "token")
        return segment_extreme(x_t, self.token_seq, self.n_sequences, largest=True)

    def seq_suffix_sum(self, x_t: Tensor, decay_t: Tensor | None = None) -> Tensor:
        """Reward-to-go inside each sequence: G_t = x_t + decay_t G_{t+1}, 0 past the end. [T] -> [T].

        decay_t: [T] in [0, 1], default 1.  Spans of 1, 2, 4, ... tokens are joined, log2(longest) rounds, so
        that nothing is subtracted or divided: one sequence's size or infinity never reaches another.
        """
        self._check(x_t, "token")
        exact = torch.float64 if x_t.is_floating_point() else torch.int64
        total = x_t.to(exact)
        carry = torch.ones_like(total) if decay_t is None else decay_t.to(exact)
        later = self.seq_lengths[self.token_seq] - 1 - self.token_position
        index = torch.arange(self.n_tokens, device=self.device)
        longest = int(self.seq_lengths.max()) if self.n_sequences else 0
        reach = 1
        while reach < longest:
            inside = later >= reach
            partner = (index + reach).clamp(max=self.n_tokens - 1)
            total = total + torch.where(inside, carry * total[partner], torch.zeros_like(total))
            carry = torch.where(inside, carry * carry[partner], torch.zeros_like(carry))
            reach *= 2
        return total.to(x_t.dtype)

    # -- over the sequences of a prompt -------------------------------------------------------
    def group_sum(self, x_s: Tensor, where: Tensor | None = None) -> Tensor:
        """Sum per prompt. x_s: [S, ...], where: [S] bool. Returns [P, ...]."""
        self._check(x_s, "sequence")
        return segment_sum(_select(x_s, where), self.seq_prompt, self.n_prompts)

    def group_count(self, where: Tensor | None = None) -> Tensor:
        """[P] int64: how many sequences (that satisfy `where`) each prompt has."""
        return self.group_sizes if where is None else self.group_sum(where.to(torch.int64))

    def group_mean(self, x_s: Tensor, where: Tensor | None = None) -> Tensor:
        """Mean per prompt; 0 where nothing counts. x_s: [S]. Returns [P]."""
        return self.group_sum(x_s, where) / self.group_count(where).clamp(min=1)

    def group_std(self, x_s: Tensor, where: Tensor | None = None, unbiased: bool = True) -> Tensor:
        """Standard deviation per prompt, exactly 0 where all members are equal. x_s: [S]. Returns [P].

        Rounding gives (0.1 + ... + 0.1)/8 != 0.1, and dividing that residue by a tiny std would turn
        it into signal; the comparison max == min is what makes the zero exact.
        """
        centred = x_s - self.to_sequences(self.group_mean(x_s, where))
        count = self.group_count(where) - (1 if unbiased else 0)
        variance = self.group_sum(centred * centred, where) / count.clamp(min=1)
        return torch.where(self.group_constant(x_s, where), torch.zeros_like(variance), variance.sqrt())

    def group_max(self, x_s: Tensor, where: Tensor | None = None) -> Tensor:
        """[P] largest member that counts; -inf where none does."""
        return self._group_extreme(x_s, where, largest=True)

    def group_min(self, x_s: Tensor, where: Tensor | None = None) -> Tensor:
        """[P] smallest member that counts; +inf where none does."""
        return self._group_extreme(x_s, where, largest=False)

    def group_constant(self, x_s: Tensor, where: Tensor | None = None) -> Tensor:
        """[P] bool: no two members that count differ (true for one member or none)."""
        return self.group_max(x_s, where) <= self.group_min(x_s, where)

    def _group_extreme(self, x_s: Tensor, where: Tensor | None, largest: bool) -> Tensor:
        self._check(x_s, "sequence")
        segment = self.seq_prompt
        if where is not None:
            x_s, segment = x_s[where], segment[where]
        return segment_extreme(x_s, segment, self.n_prompts, largest)

    def _check(self, x: Tensor, level: str) -> None:
        if x.shape[:1] != (self.size(level),):
            raise ValueError(f"a {level} column has {self.size(level)} rows, this tensor has shape {tuple(x.shape)}")


def _select(x: Tensor, where: Tensor | None) -> Tensor:
    if where is None:
        return x
    return torch.where(where.reshape(where.shape + (1,) * (x.dim() - where.dim())), x, torch.zeros_like(x))
