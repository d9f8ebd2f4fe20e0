"""Padded arrays to a Batch and back, for tests and for people who come from padded trainers."""

from __future__ import annotations

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.layout import Layout


def from_padded(
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    response_ids: Tensor,
    response_mask: Tensor,
    group_sizes: Tensor | list[int] | None = None,
    trainable: Tensor | None = None,
    **token_columns: Tensor,
) -> Batch:
    """Build a batch from padded rows, one row per sequence.

    prompt_ids, prompt_mask: [S, P_max]; response_ids, response_mask: [S, R_max], masks are 1 on real
    tokens wherever the padding stands.  group_sizes: sequences per prompt; every member of a group must
    repeat the same prompt, which is then stored once.  trainable: [S, R_max], default all real tokens.
    token_columns: [S, R_max] each, e.g. behaviour_logp.  Masks are taken as given: a pad id that equals
    the end token changes nothing.
    """
    real, prompt_real = response_mask.bool(), prompt_mask.bool()
    n = len(response_ids)
    sizes = torch.ones(n, dtype=torch.int64) if group_sizes is None else torch.as_tensor(group_sizes)
    if int(sizes.sum()) != n or bool((sizes < 1).any()):
        raise ValueError(f"group_sizes {sizes.tolist()} must be at least 1 each and add up to the {n} rows")
    leaders = sizes.cumsum(0) - sizes
    contexts = [prompt_ids[i][prompt_real[i]] for i in range(n)]
    for leader, size in zip(leaders.tolist(), sizes.tolist(), strict=True):
        for member in range(leader, leader + size):
            if not torch.equal(contexts[member], contexts[leader]):
                raise ValueError(f"sequences {leader} and {member} are one group but their prompts differ")
    firsts = [contexts[i] for i in leaders.tolist()]
    layout = Layout.of(real.sum(1), sizes, torch.tensor([len(c) for c in firsts]))
    learn = real if trainable is None else trainable.bool()
    context = torch.cat(firsts) if firsts else prompt_ids.new_zeros(0)
    batch = Batch.of(layout, context=context, tokens=response_ids[real], trainable=learn[real])
    for name, value in token_columns.items():
        batch = batch.with_columns("token", **{name: value[real]})
    return batch


def to_padded(batch: Batch, column: Tensor, fill: float = 0) -> tuple[Tensor, Tensor]:
    """Lay a token column out as rows. column: [T]. Returns ([S, R_max] filled with `fill`, [S, R_max] bool)."""
    layout = batch.layout
    width = int(layout.seq_lengths.max()) if layout.n_sequences else 0
    mask = torch.arange(width, device=layout.device)[None, :] < layout.seq_lengths[:, None]
    rows = torch.full(mask.shape, fill, dtype=column.dtype, device=column.device)
    rows[mask] = column
    return rows, mask


def contexts_to_padded(batch: Batch, fill: int = 0) -> tuple[Tensor, Tensor]:
    """The prompt of every sequence, left-padded. Returns ([S, P_max] ids, [S, P_max] bool)."""
    layout = batch.layout
    lengths = layout.context_lengths
    width = int(lengths.max()) if layout.n_prompts else 0
    mask = torch.arange(width, device=layout.device)[None, :] >= (width - lengths)[:, None]
    rows = torch.full(mask.shape, fill, dtype=torch.int64, device=layout.device)
    rows[mask] = batch.context
    return rows[layout.seq_prompt], mask[layout.seq_prompt]
