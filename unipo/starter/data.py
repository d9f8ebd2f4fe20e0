"""Demonstrations as training batches: questions of every kind, worked with slips, some with the answer shown.

A row is  <|user|>question<|end|><|assistant|> [" " + answer] <think>steps</think>answer<|end|>  and the loss is on
what follows the bracket.  The bracket, the evidence, is there for a share of the rows; it always holds the
answer that this very demonstration ends in, right or wrong.  That is the edited prompt under which RLSD
(arXiv 2604.03128) and CEPO (arXiv 2605.19436) score a response, so for this model being shown an answer
means something: work towards it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from unipo.tasks.scratchpad import KINDS, Kind, final_answer, split_of

IGNORED = -100  # the label transformers leaves out of the loss


@dataclass(frozen=True)
class Mixture:
    """What demonstrations are drawn from. `weights`: how often each kind comes, relative to the others.

    slip_rate: share of demonstrations with one wrong step.  evidence_rate: share that show their answer first.
    """

    weights: dict[str, float]
    slip_rate: float
    evidence_rate: float


@dataclass(frozen=True)
class Row:
    """Token ids of one demonstration; the first `given` of them are not to be learnt."""

    ids: list[int]
    given: int


def prompt_ids(tokenizer: PreTrainedTokenizerFast, question: str, evidence: str | None = None) -> list[int]:
    """The chat prompt up to the assistant's mark, then ` evidence` if there is any."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    ids: list[int] = tokenizer.encode(str(text), add_special_tokens=False)
    return ids if evidence is None else ids + tokenizer.encode(f" {evidence}", add_special_tokens=False)


def draw_training_question(kind: Kind, rng: Random) -> str:
    """A question of the training side; held-out ones are never drawn."""
    while split_of(question := kind.ask(rng)) != "train":
        pass
    return question


def draw_row(tokenizer: PreTrainedTokenizerFast, mixture: Mixture, rng: Random) -> Row:
    """One demonstration as token ids."""
    kind = KINDS[rng.choices(list(mixture.weights), list(mixture.weights.values()))[0]]
    question = draw_training_question(kind, rng)
    text = kind.demonstration(rng, question, mixture.slip_rate)
    evidence = final_answer(text) if rng.random() < mixture.evidence_rate else None
    given = prompt_ids(tokenizer, question, evidence)
    learnt = tokenizer.encode(text, add_special_tokens=False)
    return Row([*given, *learnt, int(tokenizer.eos_token_id or 0)], len(given))


def collate(rows: Sequence[Row], pad: int) -> tuple[Tensor, Tensor]:
    """Pad on the right. Returns input ids and labels, both [rows, longest]; causal attention needs no mask."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [pad] * (longest - len(row.ids)) for row in rows])
    labels = torch.tensor(
        [[IGNORED] * row.given + row.ids[row.given :] + [IGNORED] * (longest - len(row.ids)) for row in rows]
    )
    return ids, labels


def batches(
    tokenizer: PreTrainedTokenizerFast, mixture: Mixture, size: int, seed: int, pool: int = 32
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of `size` fresh rows. Rows of like length share a batch, drawn `pool` batches at a time."""
    rng = Random(f"starter {seed}")
    while True:
        rows = sorted((draw_row(tokenizer, mixture, rng) for _ in range(size * pool)), key=lambda row: len(row.ids))
        places = list(range(pool))
        rng.shuffle(places)
        for place in places:
            yield collate(rows[place * size : (place + 1) * size], int(tokenizer.pad_token_id or 0))
