"""Any dataset of reasoning-gym as a task, scored by its own verifier.

Source: open-thought/reasoning-gym (Stojanovski et al. 2025, arXiv 2505.24760).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unipo.errors import ConfigError, RewardError
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.extract import TAG_INSTRUCTION, compiled, extract_answer
from unipo.tasks.guard import may_be_scored
from unipo.tasks.reasoning_rows import Row, draw_rows, is_process_dependent, make_dataset
from unipo.tasks.task import Example, Sample, Scores

PREFIX = "reasoning-gym:"


@dataclass(frozen=True)
class ReasoningReward:
    """The dataset's own `score_answer`, in [0, 1] (some datasets give part of it for part of an answer).

    The entry is made again from the row's seed and index, because through JSON a tuple becomes a list and two
    of the scorers would then refuse their own answer; for datasets that only a child process draws alike (see
    `unipo.tasks.reasoning_rows`) it is the row itself.
    extract: see `unipo.tasks.extract.extract_answer`.
    events: "scorer raised" (the verifier failed on this text: scored as no answer) and "answer refused" (its
    scorer would evaluate the text as code, see `unipo.tasks.guard`: scored as no answer).
    Raises RewardError: a row of another task or another version of reasoning-gym, a score outside [0, 1].
    Unsure: the scorer of game_of_life_halting (0.1.25) gives 1 to any text if the answer is "False"; it is
    used as it is.  No scorer is timed; guarded answers are bounded in size instead.
    """

    dataset: str
    config: Mapping[str, Any] = field(default_factory=dict)
    extract: str | None = None
    scorers: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)
    entries: dict[tuple[int, int], Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.extract is not None:
            compiled(self.extract)

    @property
    def name(self) -> str:
        """The dataset's name, as `data.task` spells it."""
        return PREFIX + self.dataset

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        events: Counter[str] = Counter()
        found = [extract_answer(s.text, self.extract) for s in samples]
        score: list[float | None] = [self._score(a, s, events) for a, s in zip(found, samples, strict=True)]
        return Scores(list(score), score, {"correct": list(score)}, found, dict(events))

    def _score(self, answer: str | None, sample: Sample, events: Counter[str]) -> float:
        scorer, entry = self.entry(sample.row)
        source = (entry.get("metadata") or {}).get("source_dataset", self.dataset)
        if answer is not None and not may_be_scored(source, answer, entry):
            events["answer refused"] += 1
            answer = None
        try:
            value = float(scorer.score_answer(answer, entry))
        except Exception:  # a verifier that trips over what a model wrote is counted, and the answer is not one
            events["scorer raised"] += 1
            value = float(scorer.score_answer(None, entry))
        if not math.isfinite(value) or not 0 <= value <= 1:
            raise RewardError(f"the scorer of {self.name} returned {value} for {answer!r}; it must lie in [0, 1]")
        return value

    def entry(self, row: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        """(the dataset with its scorer, the entry) that a row came from; both are kept for the next call."""
        try:
            seed, index, size, dataset = int(row["seed"]), int(row["index"]), int(row["size"]), row["dataset"]
            question = row["question"]
        except (KeyError, TypeError, ValueError) as error:
            raise RewardError(f"{self.name} needs a row of its own task, this one has {sorted(row)}") from error
        if dataset != self.dataset:
            raise RewardError(f"{self.name} was given a row of {dataset!r}")
        if seed not in self.scorers:
            self.scorers[seed] = make_dataset(self.dataset, seed, size, self.config)
        if is_process_dependent(self.dataset, self.config):
            return self.scorers[seed], row
        if (seed, index) not in self.entries:
            self.entries[seed, index] = self.scorers[seed][index]
        entry = self.entries[seed, index]
        if entry["question"] != question:
            raise RewardError(
                f"{self.name} makes another question from seed {seed}, index {index} than the row has: the row is of "
                "other options or another version of reasoning-gym"
            )
        return self.scorers[seed], entry


def reasoning_task(
    dataset: str,
    *,
    size: int = 1000,
    heldout: int = 200,
    seed: int = 0,
    instruction: str = TAG_INSTRUCTION,
    system: str | None = None,
    extract: str | None = None,
    **config: Any,
) -> DatasetTask:
    """A reasoning-gym dataset as a task. config: the dataset's own options, such as min_terms=2.

    size, heldout: distinct questions on each side.  instruction: put under every question ("" for none).
    `Example.row` is JSON-able: question, answer, metadata, and where the entry comes from.
    `Example.answer` is the dataset's own answer, or None where it has a verifier but no single answer.
    Raises ConfigError: an unknown name or option, or fewer distinct questions than asked for.
    """
    if size < 1 or heldout < 0 or seed < 0:
        raise ConfigError(f"size must be at least 1, heldout and seed at least 0; got {size}, {heldout}, {seed}")
    reward = ReasoningReward(dataset, dict(config), extract)
    held, train = draw_rows(dataset, config, seed, size, heldout)
    examples = [_example(row, place, instruction, system) for place, row in enumerate([*held, *train])]
    return DatasetTask(reward.name, tuple(examples[heldout:]), tuple(examples[:heldout]), reward)


def _example(row: Row, place: int, instruction: str, system: str | None) -> Example:
    text = row["question"] + (f"\n\n{instruction}" if instruction else "")
    answer = row["answer"]
    prompt = text if system is None else ({"role": "system", "content": system}, {"role": "user", "content": text})
    return Example(prompt, answer if answer is None else str(answer), row=row, id=place)
