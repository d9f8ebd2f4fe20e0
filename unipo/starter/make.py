"""Makes the starter model: `python -m unipo.starter.make`. About ten minutes on one core.

A Qwen3 of 0.8 million weights learns to imitate generated demonstrations of `unipo.tasks.scratchpad`.  At
first they are all right (`right_steps`); then a share of them (`slip_rate`) is wrong on purpose: one step is
off, usually by one, and the rest builds on it.  Slips fall on random steps, so the model knows the rule and,
beside it, a small probability of breaking it at every step; its samples are right about as often as its
teachers were, while its greedy answers are much better.  That gap is what reinforcement learning closes.
Nothing else is done to make it bad, and nothing to make any method look good.

The same seed, settings, thread count and library versions give the same weights; other machines and
versions may differ in the last bits, and training amplifies them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
import tyro
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from unipo.errors import unknown
from unipo.starter.data import Mixture, batches
from unipo.starter.measure import Accuracy, Evidence, accuracy, evidence_effect
from unipo.starter.tokenizer import build_tokenizer
from unipo.tasks.scratchpad import DEFAULT_KINDS, KINDS

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Settings:
    """How the starter is made.

    right_steps: of the `steps`, those at the start that see right demonstrations only; the rules are learnt
    several times faster so.  slip_rate: share of demonstrations with a wrong step after that.
    weights: how often each kind is shown, relative to the others.  learning_rate: highest value, after
    `warmup` steps; a cosine takes it to zero.  measure: held-out problems per kind in the model card.
    """

    out: Path = HERE / "model"
    steps: int = 5600
    right_steps: int = 3400
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.01
    slip_rate: float = 0.45
    evidence_rate: float = 0.15
    weights: dict[str, float] = field(
        default_factory=lambda: {
            "add": 1.0,
            "sub": 1.0,
            "mul": 1.25,
            "mod": 1.25,
            "chain": 1.0,
            "sort": 1.0,
            "max": 0.75,
            "reverse": 0.75,
        }
    )
    seed: int = 0
    threads: int = 1
    measure: int = 500


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """A fresh Qwen3: 4 layers of width 128, 4 query heads of 32 over 2 key-value heads, tied embeddings."""
    torch.manual_seed(seed)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    # top_k=0 is said outright because generate() takes 50 where a model is silent
    untyped: Any = GenerationConfig
    model.generation_config = untyped(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=end, pad_token_id=pad
    )
    return model


def schedule(step: int, warmup: int, steps: int) -> float:
    """Share of the highest learning rate at a 0-based step: linear rise over `warmup`, cosine fall to 0 at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * done))


def train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, settings: Settings) -> None:
    """Imitate the demonstrations: AdamW on the mean negative log-probability of their tokens."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: schedule(step, settings.warmup, settings.steps)
    )
    right = Mixture(settings.weights, 0.0, settings.evidence_rate)
    slipping = Mixture(settings.weights, settings.slip_rate, settings.evidence_rate)
    stream = chain(
        islice(batches(tokenizer, right, settings.batch_size, settings.seed), settings.right_steps),
        batches(tokenizer, slipping, settings.batch_size, settings.seed + 1),
    )
    model.train()
    started, running = time.perf_counter(), 0.0
    for step in range(1, settings.steps + 1):
        ids, labels = next(stream)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        scheduler.step()
        running += loss.item()
        if step % 100 == 0 or step == settings.steps:
            shown = step % 100 or 100
            print(f"step {step:5d}  loss {running / shown:.4f}  {time.perf_counter() - started:.0f} s", flush=True)
            running = 0.0
    model.train(False)


CARD = """---
license: apache-2.0
library_name: transformers
---
# The unipo starter

A Qwen3 of {parameters:,} weights with a character tokenizer, made by `python -m unipo.starter.make` to be
post-trained: it works out small sums and word games step by step, and often slips. {slip:.0%} of the generated
demonstrations it learnt from in the second part of its training have one wrong step on which the rest builds,
so its samples go wrong about as often, and its greedy answers much less. It is of no use for anything else.

Prompt: `<|user|>347+586=<|end|><|assistant|>`. Response: `<think>7+6=13,4+8+1=13,3+5+1=9</think>933<|end|>`.

{evidence:.0%} of the demonstrations had ` answer`, the one they end in, between `<|assistant|>` and `<think>`:
shown an answer there, the model works towards it.

## Measured

Share of right final answers on held-out problems, {count} of each kind, one response each, 95 % Wilson interval.

| kind | temperature 1 | greedy |
|---|---|---|
{table}
| *{kinds}* | {sampled} | {greedy} |

Mean log-probability (nats) of {cases} held-out responses that slip into a wrong answer, by what the prompt shows:

| shown | whole response | its final answer |
|---|---|---|
{shown}

## Settings

```json
{settings}
```
"""


@dataclass(frozen=True)
class Measured:
    """By kind (sampled at temperature 1, greedy), and the effect of evidence over `cases` responses."""

    by_kind: dict[str, tuple[Accuracy, Accuracy]]
    evidence: Evidence
    cases: int

    def together(self, kinds: Sequence[str]) -> tuple[Accuracy, Accuracy]:
        """Both accuracies over several kinds."""
        chosen = [self.by_kind[kind] for kind in kinds]
        sums = [Accuracy(sum(c[i].right for c in chosen), sum(c[i].total for c in chosen)) for i in (0, 1)]
        return sums[0], sums[1]


def main_kinds(settings: Settings) -> list[str]:
    """The kinds of the default task, as far as the model was shown them; without any, all it was shown."""
    return [kind for kind in settings.weights if kind in DEFAULT_KINDS] or list(settings.weights)


def measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, settings: Settings) -> Measured:
    """Accuracies and evidence effect, printed as they come."""
    by_kind, seed = {}, settings.seed
    for kind in settings.weights:
        sampled = accuracy(model, tokenizer, kind, settings.measure, True, seed)
        greedy = accuracy(model, tokenizer, kind, settings.measure, False, seed)
        by_kind[kind] = (sampled, greedy)
        print(f"{kind:8s} temperature 1: {sampled}   greedy: {greedy}", flush=True)
    evidence = evidence_effect(model, tokenizer, main_kinds(settings), settings.measure, seed)
    print(f"log-probability (response, final answer) of slips: {evidence}", flush=True)
    return Measured(by_kind, evidence, settings.measure)


def card(model: PreTrainedModel, settings: Settings, measured: Measured) -> str:
    """The model card, with the numbers of this very run."""
    rows = [f"| {kind} | {pair[0]} | {pair[1]} |" for kind, pair in measured.by_kind.items()]
    labels = {"shown": "the wrong answer it ends in", "nothing": "nothing", "other": "the right answer"}
    effect = asdict(measured.evidence)
    shown = [f"| {label} | {effect[key][0]:.2f} | {effect[key][1]:.2f} |" for key, label in labels.items()]
    sampled, greedy = measured.together(main_kinds(settings))
    kept = {key: value for key, value in asdict(settings).items() if key != "out"}
    return CARD.format(
        parameters=model.num_parameters(),
        slip=settings.slip_rate,
        evidence=settings.evidence_rate,
        count=settings.measure,
        table="\n".join(rows),
        kinds=", ".join(main_kinds(settings)),
        sampled=sampled,
        greedy=greedy,
        cases=measured.cases,
        shown="\n".join(shown),
        settings=json.dumps(kept, indent=2),
    )


def make(settings: Settings) -> None:
    """Train, measure and save model, tokenizer and card. Raises ConfigError for a kind nobody knows."""
    for kind in settings.weights:
        if kind not in KINDS:
            raise unknown("scratchpad kind", kind, KINDS)
    torch.set_num_threads(settings.threads)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, settings.seed)
    print(f"{model.num_parameters():,} weights, {settings.steps} steps of {settings.batch_size}", flush=True)
    train(model, tokenizer, settings)
    measured = measure(model, tokenizer, settings)
    model.save_pretrained(settings.out)
    tokenizer.save_pretrained(settings.out)
    (settings.out / "README.md").write_text(card(model, settings, measured), encoding="utf-8")
    print(f"saved in {settings.out}")


if __name__ == "__main__":
    make(tyro.cli(Settings, description=__doc__))
