"""A public checker: does a task keep the promises that training and evaluation rely on?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from unipo.errors import DataError
from unipo.tasks.dataset import prompt_key
from unipo.tasks.task import Example, Reward, Sample, Scores, Task

# How a right answer may have to be written to be found; a task's reward must find one of these spellings.
SPELLINGS = (
    "{answer}",
    "<answer>{answer}</answer>",
    "<think></think>{answer}",
    "\\boxed{{{answer}}}",
    "#### {answer}",
)
GARBAGE = ("", "I do not know.", "<answer></answer>")


@dataclass(frozen=True)
class TaskReport:
    """claims: what was found to hold.  notes: what could not be checked, and why.  spelling: of SPELLINGS."""

    name: str
    train: int
    heldout: int
    claims: tuple[str, ...]
    notes: tuple[str, ...] = ()
    spelling: str | None = None
    events: dict[str, int] = field(default_factory=dict)


def check_task(
    task: Task,
    rebuild: Callable[[], Task] | None = None,
    respond: Callable[[Example], str] | None = None,
    limit: int = 200,
) -> TaskReport:
    """Check a task, and its reward on up to `limit` examples of each side.

    rebuild: makes the task anew; both must have the same examples.  respond: writes a right response to an
    example, for tasks where the answer itself, plain, tagged or boxed, is none.
    Raises DataError at the first broken promise: no examples, ids that repeat on a side, an empty prompt, a prompt on
    both sides, another result the second time, a truth that does not score 1, or nonsense that does.
    """
    if not isinstance(task, Task):
        raise DataError(f"{task!r} is no task: it needs name, train, heldout and reward")
    claims, notes = _check_examples(task)
    if rebuild is not None:
        again = rebuild()
        _require(list(again.train) == list(task.train), "made again, the task has other training examples")
        _require(list(again.heldout) == list(task.heldout), "made again, the task has other held-out examples")
        claims.append("made again, it is the same")
    counts = len(task.train), len(task.heldout)
    if task.reward is None:
        notes.append("it has no reward of its own to check")
        return TaskReport(task.name, *counts, tuple(claims), tuple(notes))
    examples = [*task.train[:limit], *task.heldout[:limit]]
    events: dict[str, int] = {}
    spelling = _check_truth(task.reward, examples, respond, claims, notes, events)
    _check_garbage(task.reward, examples, claims, events)
    return TaskReport(task.name, *counts, tuple(claims), tuple(notes), spelling, events)


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise DataError(complaint)


def _check_examples(task: Task) -> tuple[list[str], list[str]]:
    everything = [*task.train, *task.heldout]
    _require(len(task.train) > 0, f"{task.name} has no training examples")
    _require(everything == [*task.train, *task.heldout], f"{task.name} gives other examples when read again")
    for side, examples in (("training", task.train), ("held-out", task.heldout)):
        seen: set[int] = set()
        for example in examples:
            _require(example.id not in seen, f"{task.name}: two {side} examples have the id {example.id}")
            seen.add(example.id)
            _require(not _is_empty(example), f"{task.name}, {side} example {example.id}: the prompt is empty")
    train = {prompt_key(e.prompt, e.images) for e in task.train}
    shared = [e.id for e in task.heldout if prompt_key(e.prompt, e.images) in train]
    _require(
        not shared, f"{task.name}: {len(shared)} held-out prompts are trained on, the first has the id {shared[:1]}"
    )
    claims = ["ids are unique on each side", "prompts are not empty", "reading twice gives the same"]
    if task.heldout:
        claims.append("no prompt is on both sides")
    notes = [] if task.heldout else ["nothing is held out"]
    if {e.id for e in task.train} & {e.id for e in task.heldout}:
        notes.append("training and held-out examples share ids")
    if len(train) < len(task.train):
        notes.append(f"{len(task.train) - len(train)} training examples repeat a prompt")
    return claims, notes


def _is_empty(example: Example) -> bool:
    if isinstance(example.prompt, str):
        return not example.prompt.strip()
    return not any(str(m.get("content", "")).strip() for m in example.prompt if m.get("role") != "system")


def _check_truth(
    reward: Reward,
    examples: Sequence[Example],
    respond: Callable[[Example], str] | None,
    claims: list[str],
    notes: list[str],
    events: dict[str, int],
) -> str | None:
    answered = [e for e in examples if respond is not None or e.answer is not None]
    if len(answered) < len(examples):
        notes.append(f"{len(examples) - len(answered)} of {len(examples)} examples have no answer to check with")
    if not answered:
        return None
    if respond is not None:
        texts = {"respond": [respond(e) for e in answered]}
    else:
        texts = {s: [s.format(answer=e.answer) for e in answered] for s in SPELLINGS}
    wrong: dict[str, list[tuple[int, float | None]]] = {}
    for spelling, written in texts.items():
        scores = _score(reward, answered, written, events)
        wrong[spelling] = [(e.id, v) for e, v in zip(answered, scores, strict=True) if v is None or v < 1]
        if not wrong[spelling]:
            claims.append(f"the right answer scores 1 ({len(answered)} checked)")
            return spelling
    nearest = min(wrong, key=lambda s: len(wrong[s]))
    place, value = wrong[nearest][0]
    raise DataError(
        f"{reward.name}: the right answer of {len(wrong[nearest])} of {len(answered)} examples does not score 1, "
        f"first example {place} with {value} (written as {nearest!r}); pass respond= if an answer needs another form"
    )


def _check_garbage(reward: Reward, examples: Sequence[Example], claims: list[str], events: dict[str, int]) -> None:
    for text in GARBAGE:
        scores = _score(reward, examples, [text] * len(examples), events)
        good = [e.id for e, v in zip(examples, scores, strict=True) if v is not None and v >= 1]
        _require(not good, f"{reward.name}: the response {text!r} scores 1 for {len(good)} examples, first {good[:1]}")
    claims.append("empty and senseless responses score below 1")


def _score(
    reward: Reward, examples: Sequence[Example], texts: Sequence[str], events: dict[str, int]
) -> list[float | None]:
    """Scores of one response each, checked for shape, finiteness and for being the same the second time."""
    samples = [Sample(_prompt_text(e), t, e.answer, e.row) for e, t in zip(examples, texts, strict=True)]
    first, second = reward(samples), reward(samples)
    _require(first == second, f"{reward.name} scores the same samples differently the second time")
    _check_shape(reward, first, len(samples))
    for name, count in first.events.items():
        events[name] = events.get(name, 0) + count
    return first.score


def _check_shape(reward: Reward, scores: Scores, count: int) -> None:
    columns = {"total": scores.total, "score": scores.score, **scores.parts}
    for name, column in columns.items():
        _require(len(column) == count, f"{reward.name}: {len(column)} entries in {name!r} for {count} samples")
        bad = [v for v in column if v is not None and not math.isfinite(v)]
        _require(not bad, f"{reward.name}: {name!r} holds {bad[:1]}, which is no finite number")


def _prompt_text(example: Example) -> str:
    if isinstance(example.prompt, str):
        return example.prompt
    return "\n\n".join(str(m.get("content", "")) for m in example.prompt)
