"""The products alone: nothing but the matrix products of a step, at their own shapes and in their own number.

The floor (floor.py) divides operations by the machine's best rate. No implementation that decodes token by token can
reach it, because a product of 64 rows does not run at that rate. This contender does run them: every product of every
layer and of the head, with weights of its own for each layer, forward in decoding steps and then forward and backward
over the packed batch. Attention, norms, activations, sampling and the optimiser are left out. What a step may cost at
least, beyond these, is what the others add. For every size the faster of the two libraries in torch is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shapes import Shape, read_model_dir
from worker import Channel, Message, serve, versions

TRIALS = 5


def layer_sizes(shape: Shape) -> list[tuple[int, int]]:
    """(inputs, outputs) of a layer's products: q, k and v as one, output, gate and up as one, down."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return [
        (shape.hidden, queries + 2 * keys),
        (queries, shape.hidden),
        (shape.hidden, 2 * shape.mlp),
        (shape.mlp, shape.hidden),
    ]


def fastest(run: dict[str, Callable[[], Any]]) -> Callable[[], Any]:
    """The one that takes the least time, the best of a few trials each."""

    def best(function: Callable[[], Any]) -> float:
        function()
        times = []
        for _ in range(TRIALS):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)

    return min(run.values(), key=best)


class Products:
    """All products of one shape, ready to run."""

    def __init__(self, shape: Shape, dtype: str) -> None:
        import torch

        self.torch, self.dtype = torch, getattr(torch, dtype)
        self.shape = shape
        rows = shape.prompts * (shape.prompt_tokens + shape.group * (shape.answer_tokens - 1))
        read = shape.prompts * (1 + shape.group * (shape.answer_tokens - 1))
        layers = [size for _ in range(shape.layers) for size in layer_sizes(shape)]
        head = (shape.hidden, shape.vocab)
        weights = {i: self._random(n_out, n_in) for i, (n_in, n_out) in enumerate([*layers, head])}
        one = self._random
        self.prefill = [self._forward(shape.prompts * shape.prompt_tokens, weights[i]) for i in range(len(layers))]
        self.step = [self._forward(shape.sequences, weights[i]) for i in range(len(layers))]
        self.logits = self._forward(shape.sequences, weights[len(layers)])
        self.update: list[Callable[[], Any]] = []
        for i, (n_in, n_out) in enumerate([*layers, head]):
            n = rows if i < len(layers) else read
            x, g, w = one(n, n_in), one(n, n_out), weights[i]
            self.update += [self._forward(n, w), self._product(g, w), self._product(g.t(), x)]

    def _random(self, *size: int) -> Any:
        return self.torch.randn(*size).to(self.dtype)

    def _forward(self, rows: int, weight: Any) -> Callable[[], Any]:
        """x W^T with W packed beforehand where that is faster."""
        x = self._random(rows, weight.shape[1])
        ops = self.torch.ops.mkldnn
        packed = ops._reorder_linear_weight(weight, rows)
        return fastest(
            {
                "plain": lambda: self.torch.mm(x, weight.t()),
                "packed": lambda: ops._linear_pointwise(x, packed, None, "none", [], ""),
            }
        )

    def _product(self, a: Any, b: Any) -> Callable[[], Any]:
        ops = self.torch.ops.mkldnn
        return fastest(
            {
                "plain": lambda: self.torch.mm(a, b),
                "onednn": lambda: ops._linear_pointwise(a, b.t(), None, "none", [], ""),
            }
        )

    def run(self) -> dict[str, float]:
        """Seconds of one generation's and one update's products."""
        start = time.perf_counter()
        for product in self.prefill:
            product()
        self.logits()
        for _ in range(self.shape.answer_tokens - 1):
            for product in self.step:
                product()
            self.logits()
        written = time.perf_counter()
        for product in self.update:
            product()
        end = time.perf_counter()
        return {"generation_s": written - start, "update_s": end - written, "step_s": end - start}


def main() -> None:
    channel = Channel()
    import torch

    channel.mark_imports()
    state: dict[str, Products] = {}

    def setup(message: Message) -> Message:
        torch.set_num_threads(message["threads"])
        torch.set_grad_enabled(False)
        shape, _ = read_model_dir(Path(message["model_dir"]))
        state["products"] = Products(shape, message["dtype"])
        return {"versions": versions("torch")}

    serve(channel, {"setup": setup, "step": lambda _: dict(state["products"].run())})


if __name__ == "__main__":
    main()
