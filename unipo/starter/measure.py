"""What the starter can do: accuracy on held-out problems, and what showing it an answer changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from unipo.starter.data import Row, collate, prompt_ids
from unipo.tasks.scratchpad import END_THINK, KINDS, final_answer, problems


@dataclass(frozen=True)
class Accuracy:
    """`right` of `total` answers, with a 95 % Wilson interval."""

    right: int
    total: int

    @property
    def share(self) -> float:
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson score interval: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.96."""
        z, n, p = 1.959964, self.total, self.share
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        middle, scale = p + z * z / (2 * n), 1 + z * z / n
        return (middle - half) / scale, (middle + half) / scale

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


@torch.no_grad()
def respond(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, questions: Sequence[str], sample: bool, limit: int = 64
) -> list[str]:
    """One response to each question, as text without the end mark. sample: temperature 1, else greedy."""
    prompts = [{"input_ids": prompt_ids(tokenizer, question)} for question in questions]
    padded = tokenizer.pad(prompts, return_tensors="pt", padding_side="left")
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
    untyped: Any = GenerationConfig
    generate: Any = model.generate
    config = untyped(max_new_tokens=limit, eos_token_id=end, pad_token_id=pad, **how)
    out = generate(**padded, generation_config=config)
    texts: list[str] = tokenizer.batch_decode(out[:, padded["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, kind: str, count: int, sample: bool, seed: int
) -> Accuracy:
    """Accuracy on `count` held-out problems of one kind, one response each."""
    torch.manual_seed(seed)
    chosen = list(islice(problems(KINDS[kind], "heldout", seed), count))
    texts = respond(model, tokenizer, [question for question, _ in chosen], sample)
    right = sum(final_answer(text) == answer for text, (_, answer) in zip(texts, chosen, strict=True))
    return Accuracy(right, count)


@dataclass(frozen=True)
class Evidence:
    """Mean log-probability, in nats, of slipped responses that end in wrong answers, by what the prompt showed.

    Each field is (whole response, its final answer and end mark only).
    shown: the answer the response ends in.  nothing: the plain prompt.  other: the right answer instead.
    """

    shown: tuple[float, float]
    nothing: tuple[float, float]
    other: tuple[float, float]


def _slipped(count: int, kinds: Sequence[str], seed: int) -> list[tuple[str, str, str]]:
    """(question, right answer, demonstration that ends in a wrong one) for held-out problems, kinds in turn."""
    rng = Random(f"evidence {seed}")
    sources = [problems(KINDS[kind], "heldout", seed) for kind in kinds]
    found: list[tuple[str, str, str]] = []
    while len(found) < count:
        place = len(found) % len(kinds)
        question, answer = next(sources[place])
        text = KINDS[kinds[place]].demonstration(rng, question, 1.0)
        if final_answer(text) != answer:
            found.append((question, answer, text))
    return found


@torch.no_grad()
def response_logp(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, cases: Sequence[tuple[str, str | None, str]]
) -> list[tuple[float, float]]:
    """Log-probability of each (question, evidence or None, response): of all its tokens, and of those after
    `</think>`, the end mark included in both."""
    rows, tails = [], []
    for question, evidence, text in cases:
        given = prompt_ids(tokenizer, question, evidence)
        said = [*tokenizer.encode(text, add_special_tokens=False), int(tokenizer.eos_token_id or 0)]
        rows.append(Row([*given, *said], len(given)))
        tails.append(len(given) + said.index(tokenizer.convert_tokens_to_ids(END_THINK)) + 1)
    ids, _ = collate(rows, int(tokenizer.pad_token_id or 0))
    logp = torch.log_softmax(model(input_ids=ids).logits[:, :-1].float(), -1)
    taken = logp.gather(-1, ids[:, 1:, None])[..., 0]
    return [
        (
            float(taken[place, row.given - 1 : len(row.ids) - 1].sum()),
            float(taken[place, tail - 1 : len(row.ids) - 1].sum()),
        )
        for place, (row, tail) in enumerate(zip(rows, tails, strict=True))
    ]


def evidence_effect(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, kinds: Sequence[str], count: int, seed: int
) -> Evidence:
    """What showing an answer does to the log-probability of held-out responses that end in a wrong one."""
    cases = _slipped(count, kinds, seed)

    def mean(evidence: Sequence[str | None]) -> tuple[float, float]:
        shown = [(question, given, text) for (question, _, text), given in zip(cases, evidence, strict=True)]
        values = response_logp(model, tokenizer, shown)
        return sum(v[0] for v in values) / count, sum(v[1] for v in values) / count

    return Evidence(
        shown=mean([final_answer(text) for _, _, text in cases]),
        nothing=mean([None] * count),
        other=mean([answer for _, answer, _ in cases]),
    )
