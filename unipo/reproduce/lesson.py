"""What the shipped model is taught before an experiment about a behaviour that it was never shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unipo.compare.worker import one_thread
from unipo.starter import starter_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RNG = "lesson"  # seed of the demonstrations
TOLD_APART = 256  # demonstrations by which two lessons are told apart


@dataclass(frozen=True)
class Lesson:
    """Imitation of demonstrations before all runs, the same for every arm; no reward is seen.

    write: one demonstration from a generator, (what the user says, what is answered).  rows: demonstrations per step.
    learning_rate: at the start; it falls to 0 linearly.
    """

    write: Callable[[Random], tuple[str, str]]
    steps: int = 150
    rows: int = 32
    learning_rate: float = 1e-3

    def __str__(self) -> str:
        """Everything that decides the model it makes, so that a kept result is known to be of another lesson."""
        what = (self.write.__doc__ or "").strip().partition("\n")[0]
        return (
            f"the shipped model after {self.steps} steps of imitating {self.rows} demonstrations each, learning rate "
            f"{self.learning_rate:g}, demonstrations {self.digest()}" + (f": {what}" if what else "")
        )

    def digest(self) -> str:
        """Eight letters that differ where the demonstrations do."""
        rng = Random(RNG)
        shown = json.dumps([self.write(rng) for _ in range(TOLD_APART)])
        return hashlib.sha256(shown.encode()).hexdigest()[:8]

    def __call__(self, folder: Path, quick: bool = False) -> None:
        """Write the taught model with its tokenizer. quick: after a few steps of four demonstrations each."""
        if quick:
            replace(self, rows=4, steps=min(self.steps, 20))(folder)
            return
        from transformers import AutoModelForCausalLM, AutoTokenizer

        load: Any = AutoModelForCausalLM.from_pretrained
        model = load(starter_path(), dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(starter_path())
        optimiser = torch.optim.AdamW(model.parameters(), lr=self.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
        with one_thread():
            for step, (ids, labels) in enumerate(self.batches(tokenizer)):
                optimiser.param_groups[0]["lr"] = self.learning_rate * (1 - step / self.steps)
                model(input_ids=ids, labels=labels).loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def batches(self, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Tensor, Tensor]]:
        """Input ids and labels of every step, the same each time."""
        from unipo.starter.data import Row, collate, prompt_ids

        rng, end = Random(RNG), int(tokenizer.eos_token_id or 0)
        for _ in range(self.steps):
            rows = []
            for _ in range(self.rows):
                question, answer = self.write(rng)
                given = prompt_ids(tokenizer, question)
                ids = [*given, *tokenizer.encode(answer, add_special_tokens=False), end]
                rows.append(Row(ids, len(given)))
            yield collate(rows, int(tokenizer.pad_token_id or 0))
