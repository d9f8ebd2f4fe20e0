"""The same responses after another prompt, one for each response."""

from __future__ import annotations

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import DataError
from unipo.layout import Layout


def edited(batch: Batch, required: Tensor) -> Batch:
    """The responses with required tokens, each after its `teacher_context`; columns context, tokens, required.

    required: [T] bool.  Order is kept, so required tokens come in the same order.  Neighbours of one prompt that
    see the same context share it.
    """
    layout = batch.layout
    alive = (layout.seq_sum(required.to(torch.int64)) > 0).nonzero().flatten()
    rows = batch.with_columns("token", required=required).take_sequences(alive)
    owners = rows.layout.seq_prompt.tolist()
    contexts: list[list[int]] = []
    sizes: list[int] = []
    for i, context in enumerate(rows.teacher_context):
        if context is None:
            raise DataError(f"response {int(alive[i])} of the micro-batch is to be taught, but has no teacher's prompt")
        if i and owners[i] == owners[i - 1] and context == contexts[-1]:
            sizes[-1] += 1
        else:
            contexts.append(context)
            sizes.append(1)
    device = layout.device
    shape = Layout.of(rows.layout.seq_lengths, sizes, [len(c) for c in contexts]).to(device)
    ids = torch.tensor([t for c in contexts for t in c], dtype=batch.context.dtype, device=device)
    return Batch.of(shape, context=ids, tokens=rows.tokens).with_columns("token", required=rows.required)
