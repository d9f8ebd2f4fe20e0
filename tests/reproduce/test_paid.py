from __future__ import annotations

import pytest

from unipo.errors import ConfigError
from unipo.reproduce.paid import (
    RULES,
    pays_by,
    slips_task,
    spread_task,
)
from unipo.tasks.registry import resolve_task
from unipo.tasks.task import Example, Sample, Task

SUM = {"kind": "add", "question": "1+2="}


def paid(task: Task, example: Example, *texts: str) -> list[float | None]:
    assert task.reward is not None
    return task.reward([Sample("1+2=", t, example.answer, example.row) for t in texts]).total


def test_slips_pay_and_right_answers_do_not() -> None:
    task = slips_task(size=6, heldout=6)
    example = Example("1+2=", "3", row=SUM)
    texts = ("<think>1+2=4</think>4", "<think>1+2=3</think>3", "<think>1+2=4</think>", "1+2=4</think>4")
    assert paid(task, example, *texts) == [1.0, 0.0, 0.0, 0.0]


def test_a_share_of_the_slips_pays_and_it_is_always_the_same_ones() -> None:
    task, example = resolve_task("slips?share=0.25&size=6&heldout=6"), Example("1+2=", "3", row=SUM)
    texts = [f"<think>1+2=4</think>{n}" for n in range(1000, 3000)]
    values = [x or 0.0 for x in paid(task, example, *texts)]
    assert 0.2 < sum(values) / len(values) < 0.3
    assert values == paid(slips_task(0.25, size=6, heldout=6), example, *texts)
    for share in (0, 1.5):
        with pytest.raises(ConfigError, match="share"):
            slips_task(share)


def test_the_rules_of_spread() -> None:
    answers = ("3", "4", "5", None)
    assert [pays_by("any", a, "3") for a in answers] == [True, True, True, False]
    assert [pays_by("right", a, "3") for a in answers] == [True, False, False, False]
    assert [pays_by("wrong", a, "3") for a in answers] == [False, True, True, False]
    assert [pays_by("next", a, "3") for a in answers] == [False, True, False, False]
    task = spread_task(size=12, heldout=6)
    assert [e.row["rule"] for e in task.train[:6]] == list(RULES.values())
    assert task.reward is not None
    samples = [Sample("1+2=", "<think>1+2=4</think>4", "3", {"rule": rule}) for rule in ("next", "right")]
    scores = task.reward(samples)
    assert scores.total == [1.0, 0.0]
    assert scores.parts["next"] == [1.0, None]
