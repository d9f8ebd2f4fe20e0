"""One prompt for a whole group: forward and backward of a group with its prompt computed once, and with G copies of it.

    python benchmarks/shared_prefix.py                          # Prefix Grouper's case: P=512, S=16, G=8
    python benchmarks/shared_prefix.py --prompt 1024 --answer 64 --group 16

Both sides compute the log-probs of the same responses under the same weights and the gradient of their sum. The copies
are computed two ways: by this library's own packed forward, each response as a group of its own, so that nothing but the
sharing differs; and by `transformers` on a padded batch with logits at the response's positions only. They take turns;
medians and ratios are printed as one JSON line and appended to nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any


def problem(hidden: int, layers: int, prompt: int, answer: int, group: int, prompts: int) -> tuple[Any, Any]:
    """(a tiny random Qwen3, a batch of whole groups)."""
    import torch
    import transformers as hf

    from unipo import Batch, Layout

    torch.manual_seed(0)
    config = hf.Qwen3Config(
        vocab_size=128,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        intermediate_size=3 * hidden,
        max_position_embeddings=prompt + answer,
    )
    layout = Layout.of([answer] * (group * prompts), [group] * prompts, [prompt] * prompts)
    batch = Batch.of(
        layout,
        context=torch.randint(128, (layout.n_context,)),
        tokens=torch.randint(128, (layout.n_tokens,)),
        trainable=torch.ones(layout.n_tokens, dtype=torch.bool),
    )
    return hf.AutoModelForCausalLM.from_config(config).float(), batch


def contenders(model: Any, batch: Any, prompt: int, answer: int) -> dict[str, tuple[Any, Callable[[], Any]]]:
    """(its model, what computes [T] log-probs with a graph), by name."""
    import copy

    import torch

    from unipo import Batch
    from unipo.policy.model import Policy
    from unipo.policy.spec import PolicySpec

    policy = Policy(copy.deepcopy(model), None, PolicySpec())
    layout = batch.layout
    copies = Batch.concat([batch.take_sequences([s]) for s in range(layout.n_sequences)])
    ids = torch.stack([torch.cat([copies.context[s * prompt :][:prompt], copies.tokens[s * answer :][:answer]])
                       for s in range(layout.n_sequences)])  # fmt: skip

    def padded() -> Any:
        logits = model(ids[:, :-1], logits_to_keep=answer, use_cache=False).logits
        return logits.log_softmax(-1).gather(-1, ids[:, -answer:, None]).flatten()

    return {
        "shared": (policy.model, lambda: policy.columns(batch, batch.trainable)["logp"]),
        "copies": (policy.model, lambda: policy.columns(copies, copies.trainable)["logp"]),
        "transformers": (model, padded),
    }


def measured(run: dict[str, tuple[Any, Callable[[], Any]]], repetitions: int) -> tuple[dict[str, list[float]], float]:
    """(seconds of forward and backward of each contender by turn, largest difference of log-probs or gradients)."""
    import torch

    def once(model: Any, compute: Callable[[], Any]) -> tuple[Any, Any]:
        model.zero_grad(set_to_none=True)
        logp = compute()
        logp.mean().backward()
        return logp.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    results = {name: once(*contender) for name, contender in run.items()}
    first = results["shared"]
    apart = max(float((a - b).abs().max()) for r in results.values() for a, b in zip(r, first, strict=True))
    times: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(repetitions):
        for name, contender in run.items():
            start = time.perf_counter()
            once(*contender)
            times[name].append(time.perf_counter() - start)
    return times, apart


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"hidden": 128, "layers": 4, "prompt": 512, "answer": 16, "group": 8, "prompts": 1, "repetitions": 15}
    for name, value in numbers.items():
        asked.add_argument(f"--{name}", type=int, default=value)
    given = vars(asked.parse_args())
    repetitions = given.pop("repetitions")
    model, batch = problem(**given)
    run = contenders(model, batch, given["prompt"], given["answer"])
    times, apart = measured(run, repetitions)
    shared = times.pop("shared")
    ratios = {
        name: round(statistics.median(t / s for t, s in zip(taken, shared, strict=True)), 2)
        for name, taken in times.items()
    }
    seconds = {"shared": statistics.median(shared)} | {n: statistics.median(t) for n, t in times.items()}
    print(json.dumps({**given, "seconds": seconds, "times_slower_than_shared": ratios, "largest_difference": apart}))


if __name__ == "__main__":
    main()
