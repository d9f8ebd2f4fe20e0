"""unipo as a contender: the same protocol as the peers, over `unipo.training.bench.StepBench` (see worker.py)."""

from __future__ import annotations

from worker import Channel, Message, serve, versions

channel = Channel()

import os  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from shapes import Shape, read_model_dir  # noqa: E402

from unipo.training.bench import StepBench  # noqa: E402

channel.mark_imports()


def main() -> None:
    state: dict[str, Any] = {}

    def setup(message: Message) -> Message:
        torch.set_num_threads(message["threads"])
        shape, prompts = read_model_dir(Path(message["model_dir"]))
        state["shape"] = shape
        options = dict(message.get("options") or {})
        dtype = options.pop("dtype", message["dtype"])  # so that one run can compare autocast with a peer's float32
        state["bench"] = StepBench(
            message["model_dir"],
            prompts,
            shape.group,
            shape.answer_tokens,
            dtype,
            message["lr"],
            message["threads"],
            **options,
        )
        return {"versions": versions("torch", "transformers", "unipo")}

    def step(_: Message) -> Message:
        timed: Message = state["bench"].step()
        return {key: timed[key] for key in ("step_s", "generation_s", "update_s")}

    def generate(_: Message) -> Message:
        shape: Shape = state["shape"]
        timed: Message = state["bench"].generate()
        expected = shape.sequences * shape.answer_tokens
        if timed["tokens"] != expected:
            raise RuntimeError(f"expected {expected} tokens, unipo wrote {timed['tokens']}")
        return {"generation_s": timed["generation_s"], "tokens": timed["tokens"]}

    serve(channel, {"setup": setup, "step": step, "generate": generate})


if __name__ == "__main__":
    main()
