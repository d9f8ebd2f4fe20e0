"""Random ragged batches with every known column, for the public checkers."""

from __future__ import annotations

import torch
from torch import Tensor

from unipo.batch import Batch, Value
from unipo.layout import Layout


def random_batch(generator: torch.Generator, pairs: bool = False) -> Batch:
    """Four to six prompts with groups of two to four responses (two if `pairs`) of 0 to 6 tokens, in float64.

    One response is empty, one is unscored, some tokens are a tool's; the first group's rewards are all equal.
    `logp`, `entropy` and `live_value` are leaves with gradient.
    """
    prompts = int(_integers(generator, 4, 7, 1))
    sizes = torch.full((prompts,), 2) if pairs else _integers(generator, 2, 5, prompts)
    n = int(sizes.sum())
    lengths = _integers(generator, 0, 7, n)
    lengths[0], lengths[-1] = 3, 0
    layout = Layout.of(lengths, sizes, _integers(generator, 1, 4, prompts))
    batch = Batch.of(layout, **_source_columns(layout, generator), **_reward_columns(layout, generator))
    mask = batch.trainable & layout.to_tokens(batch.scored) & ~layout.to_tokens(batch.truncated)
    return batch.with_columns(None, mask=mask, **_model_columns(batch, mask, generator))


def _integers(generator: torch.Generator, low: int, high: int, n: int) -> Tensor:
    return torch.randint(low, high, (n,), generator=generator)


def _normal(generator: torch.Generator, n: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, generator=generator, dtype=torch.float64)


def _source_columns(layout: Layout, generator: torch.Generator) -> dict[str, Value]:
    tokens, n, prompts = layout.n_tokens, layout.n_sequences, layout.n_prompts
    place = torch.arange(n) - layout.group_starts[layout.seq_prompt]
    return {
        "context": _integers(generator, 0, 20, layout.n_context),
        "tokens": _integers(generator, 0, 20, tokens),
        "trainable": torch.rand(tokens, generator=generator) > 0.15,
        "behaviour_entropy": _normal(generator, tokens).abs(),
        "version": torch.zeros(tokens, dtype=torch.int64),
        "lag": torch.arange(tokens) % 3,
        "truncated": torch.rand(n, generator=generator) > 0.85,
        "unfinished": torch.rand(n, generator=generator) > 0.7,
        "corrupted": torch.rand(tokens, generator=generator) > 0.2,
        "fresh": torch.rand(tokens, generator=generator) > 0.3,
        "parent_reward": _normal(generator, n),
        "sibling_std": _normal(generator, n).abs(),
        "sample_id": torch.arange(n),
        "demonstration": torch.zeros(n, dtype=torch.bool),
        "prompt_id": torch.arange(prompts),
        "preference": layout.to_sequences(layout.group_sizes) - 1 - place,
        "prompt": [f"prompt {i}" for i in range(prompts)],
        "solution": [f"solution {i}" for i in range(prompts)],
        "row": [{} for _ in range(prompts)],
        "text": [f"response {i}" for i in range(n)],
        "answer": [str(i) for i in range(prompts)],
    }


def _reward_columns(layout: Layout, generator: torch.Generator) -> dict[str, Value]:
    n = layout.n_sequences
    reward = _normal(generator, n)
    reward[: int(layout.group_sizes[0])] = 0.1  # not a binary fraction: its mean is not exactly itself
    scored = torch.ones(n, dtype=torch.bool)
    scored[-2] = False
    return {
        "score": (reward > 0).to(torch.float64),
        "reward": reward,
        "scored": scored,
        "extracted": [str(i % 3) for i in range(n)],
        "reward_parts": [{"right": float(x > 0), "form": float(x)} for x in reward],
    }


def _model_columns(batch: Batch, mask: Tensor, generator: torch.Generator) -> dict[str, Value]:
    layout, tokens = batch.layout, batch.layout.n_tokens
    logp = -_normal(generator, tokens).abs() - 0.05
    near = {
        name: logp + _normal(generator, tokens, 0.3)
        for name in (
            "behaviour_logp",
            "old_logp",
            "reference_logp",
            "evidence_logp",
            "counter_logp",
            "current_logp",
            "corrupted_logp",
        )
    }
    sequence_advantage = torch.where(batch.scored, _normal(generator, layout.n_sequences), 0.0)
    sequence_advantage[: int(layout.group_sizes[0])] = 0
    value = _normal(generator, tokens, 0.5)
    return {
        **near,
        "token_reward": _normal(generator, tokens, 0.1),
        "value": value,
        "segment_value": torch.where(torch.rand(tokens, generator=generator) > 0.6, value, float("nan")),
        "returns": _normal(generator, tokens),
        "live_value": (value + _normal(generator, tokens, 0.3)).requires_grad_(),
        "sequence_advantage": sequence_advantage,
        "advantage": torch.where(mask, layout.to_tokens(sequence_advantage), 0.0),
        "logp": logp.clone().requires_grad_(),
        "entropy": _normal(generator, tokens).abs().requires_grad_(),
        "divergence": _normal(generator, tokens).abs().requires_grad_(),
        "teacher_context": [[1, 2] for _ in range(layout.n_sequences)],
        "resampled_logp": (-_normal(generator, tokens).abs()).requires_grad_(),
        "resampled_hits": torch.rand(tokens, generator=generator, dtype=torch.float64),
    }


# On even and odd tokens: a log-prob may be missing as an infinity of either sign or as nan, and exp(-inf) hides it.
_SPOILED = {
    "logp": ("-inf", "nan"),
    "old_logp": ("inf", "-inf"),
    "reference_logp": ("nan", "-inf"),
    "behaviour_logp": ("nan", "inf"),
    "evidence_logp": ("-inf", "nan"),
    "corrupted_logp": ("nan", "inf"),
    "counter_logp": ("-inf", "inf"),
    "current_logp": ("nan", "-inf"),
    "entropy": ("nan", "inf"),
    "divergence": ("inf", "nan"),
    "token_reward": ("nan", "inf"),
    "value": ("inf", "nan"),
    "returns": ("nan", "-inf"),
    "live_value": ("-inf", "nan"),
    "resampled_logp": ("-inf", "nan"),
    "resampled_hits": ("nan", "inf"),
}


def infected(batch: Batch) -> Batch:
    """The batch with infinities and nan wherever nothing may be read: off the mask, and rewards of the unscored."""
    columns: dict[str, Value] = {}
    even = torch.arange(batch.layout.n_tokens) % 2 == 0
    for name, (on_even, on_odd) in _SPOILED.items():
        value = batch.columns[name]
        assert isinstance(value, Tensor)
        poison = torch.where(even, float(on_even), float(on_odd)).to(value.dtype)
        columns[name] = torch.where(batch.mask, value.detach(), poison).requires_grad_(value.requires_grad)
    columns["reward"] = torch.where(batch.scored, batch.reward, float("nan"))
    return batch.with_columns(None, **columns)


def reordered(batch: Batch, generator: torch.Generator) -> tuple[Batch, dict[str, Tensor]]:
    """(the same batch with prompts, and responses inside each prompt, in another order; rows taken, by level)."""
    layout = batch.layout
    prompts = torch.randperm(layout.n_prompts, generator=generator)
    groups = [
        int(layout.group_starts[p]) + torch.randperm(int(layout.group_sizes[p]), generator=generator) for p in prompts
    ]
    sequences = torch.cat(groups)
    rows = {
        "prompt": prompts,
        "sequence": sequences,
        "token": _spans(layout.seq_starts, layout.seq_lengths, sequences),
        "context": _spans(layout.context_starts, layout.context_lengths, prompts),
    }
    moved = Layout(layout.seq_lengths[sequences], layout.group_sizes[prompts], layout.context_lengths[prompts])
    columns: dict[str, Value] = {}
    for name, value in batch.columns.items():
        index = rows[batch.levels[name]]
        if isinstance(value, Tensor):
            taken = value.detach()[index]
            columns[name] = taken.requires_grad_() if value.requires_grad else taken
        else:
            columns[name] = [value[i] for i in index.tolist()]
    return Batch(moved, columns, batch.levels, batch.step, batch.total_steps, batch.states), rows


def _spans(starts: Tensor, lengths: Tensor, chosen: Tensor) -> Tensor:
    pieces = [torch.arange(int(starts[i]), int(starts[i]) + int(lengths[i])) for i in chosen]
    return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int64)
