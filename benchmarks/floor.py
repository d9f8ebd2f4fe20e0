"""The floor: the seconds a step would take if nothing but its matrix products cost time, at the machine's best rate.

The floating-point operations that a step needs, with each prompt computed once for its group:
  a token in all layers     2 (2 h q + 2 h k + 3 h m) L,   q = heads x head_dim, k = kv_heads x head_dim, m = mlp
  attention at position i   4 q (i + 1) L                  (scores and their use; causal, positions from 0)
  a row of the output head  2 h V
A group of G answers of R tokens to a prompt of P tokens passes P + G (R - 1) tokens through the layers, since the last
token of an answer is sampled and never read, and 1 + G (R - 1) rows through the head, since the G first answer tokens
share one row. Generation needs that once. The update needs it forward, and twice more backward (the gradient of a
product is two products of its size), so three times in all. Softmax, norms, sampling, AdamW and memory traffic count
as nothing, which is why this is a floor and not a target; where each decoding step must read more weights than it
does work on them (few sequences, a wide model) the true floor lies higher.

As a worker it measures the rate: `rate` -> {"rate": operations per second, the best over representative sizes,
"sizes": {"MxKxN": rate}}.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from shapes import Shape, read_model_dir
from worker import Channel, Message, serve, versions

SECONDS_PER_SIZE = 0.15
SQUARE = 1024


def layer_flops_per_token(shape: Shape) -> int:
    """Operations of the weight matrices of all layers for one token; attention's own products not included."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights = 2 * shape.hidden * queries + 2 * shape.hidden * keys + 3 * shape.hidden * shape.mlp
    return 2 * weights * shape.layers


def attention_flops(shape: Shape, first: int, last: int) -> int:
    """Operations of causal attention in all layers for one sequence's positions first..last-1 (from 0)."""
    keys_seen = (last * (last + 1) - first * (first + 1)) // 2
    return 4 * shape.heads * shape.head_dim * keys_seen * shape.layers


def generation_flops(shape: Shape) -> int:
    """Operations needed to write all answers of the batch, each prompt computed once."""
    prompt, read = shape.prompt_tokens, shape.answer_tokens - 1
    tokens = prompt + shape.group * read
    attention = attention_flops(shape, 0, prompt) + shape.group * attention_flops(shape, prompt, prompt + read)
    head = 2 * shape.hidden * shape.vocab * (1 + shape.group * read)
    return shape.prompts * (tokens * layer_flops_per_token(shape) + attention + head)


def update_flops(shape: Shape) -> int:
    """Operations of forward and backward over the same tokens."""
    return 3 * generation_flops(shape)


def floor_seconds(shape: Shape, rate: float) -> dict[str, float]:
    """The floor of each timed part at `rate` operations per second."""
    generation, update = generation_flops(shape) / rate, update_flops(shape) / rate
    return {"generation_s": generation, "update_s": update, "step_s": generation + update}


def sizes_of(shape: Shape) -> list[tuple[int, int, int]]:
    """(M, K, N) of products that the shape really does, and one large square for the machine's own best."""
    batch = shape.prompts * (shape.prompt_tokens + shape.group * (shape.answer_tokens - 1))
    answers = shape.prompts * shape.group * (shape.answer_tokens - 1)
    return [
        (shape.sequences, shape.hidden, shape.mlp),
        (batch, shape.hidden, shape.mlp),
        (batch, shape.mlp, shape.hidden),
        (min(answers, 512), shape.hidden, shape.vocab),
        (SQUARE, SQUARE, SQUARE),
    ]


def product_rate(rows: int, inner: int, columns: int, dtype: str) -> float:
    """Operations per second of one matrix product [M, K] x [N, K]^T, the best of many within SECONDS_PER_SIZE."""
    import torch
    from torch.nn.functional import linear

    left = torch.randn(rows, inner).to(getattr(torch, dtype))
    right = torch.randn(columns, inner).to(getattr(torch, dtype))
    linear(left, right)
    best, until = float("inf"), time.perf_counter() + SECONDS_PER_SIZE
    while time.perf_counter() < until:
        start = time.perf_counter()
        linear(left, right)
        best = min(best, time.perf_counter() - start)
    return 2 * rows * inner * columns / best


def main() -> None:
    channel = Channel()
    import torch

    channel.mark_imports()
    state: dict[str, Any] = {}

    def setup(message: Message) -> Message:
        torch.set_num_threads(message["threads"])
        torch.set_grad_enabled(False)
        state["shape"], _ = read_model_dir(Path(message["model_dir"]))
        state["dtype"] = message["dtype"]
        return {"versions": versions("torch")}

    def rate(_: Message) -> Message:
        sizes = {
            "x".join(map(str, size)): product_rate(*size, dtype=state["dtype"]) for size in sizes_of(state["shape"])
        }
        return {"rate": max(sizes.values()), "sizes": sizes}

    serve(channel, {"setup": setup, "rate": rate})


if __name__ == "__main__":
    main()
