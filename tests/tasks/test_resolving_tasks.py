"""Tasks by name, and the checker that outsiders run on their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from unipo.errors import ConfigError, DataError
from unipo.tasks import registry
from unipo.tasks.arithmetic import ArithmeticReward, arithmetic_task
from unipo.tasks.check import check_task
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.fields import Fields
from unipo.tasks.mnns import sum_traces
from unipo.tasks.registry import register_task, resolve_task
from unipo.tasks.task import Example, Sample, Scores, Task

# Where the answer alone is no response: the partial sums that lead to it.
RESPOND = {"mnns": lambda example: " ".join(f"S{s}" for s in sum_traces(example.row["digits"])[0])}


def test_every_named_task_resolves_and_passes_the_checker() -> None:
    # Those the library names by place; other tests of this process register rigged ones, where a right answer may score 0.
    for name in (n for n, factory in registry._TASKS.items() if isinstance(factory, str)):
        report = check_task(
            resolve_task(name),
            rebuild=lambda name=name: resolve_task(name),  # type: ignore[misc]
            respond=RESPOND.get(name),
        )
        assert report.train > 0, name
        assert report.heldout > 0, name


def test_options_come_from_the_text_the_mapping_or_keywords_alike() -> None:
    texts = resolve_task("countdown?numbers=3&size=7&use_all=false&heldout=2")
    mapped = resolve_task("countdown", {"numbers": 3, "size": 7, "use_all": False, "heldout": 2})
    mixed = resolve_task("countdown?numbers=3", {"size": 7}, use_all=False, heldout=2)
    assert list(texts.train) == list(mapped.train) == list(mixed.train)
    assert len(texts.train) == 7


def test_an_unknown_task_or_option_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown task 'countdwn'; did you mean 'countdown'"):
        resolve_task("countdwn")
    with pytest.raises(ConfigError, match="did you mean 'numbers'"):
        resolve_task("countdown?number=3")
    with pytest.raises(ConfigError, match="given twice: 3 and 4"):
        resolve_task("countdown?numbers=3", numbers=4)
    with pytest.raises(ConfigError, match="stands twice"):
        resolve_task("countdown?numbers=3&numbers=3")
    with pytest.raises(ConfigError, match="must be written"):
        resolve_task("countdown?numbers")


def test_reasoning_gym_resolves_with_its_options() -> None:
    pytest.importorskip("reasoning_gym")
    task = resolve_task("reasoning-gym:chain_sum?min_terms=2&max_terms=2&size=5", heldout=1)
    assert (task.name, len(task.train), len(task.heldout)) == ("reasoning-gym:chain_sum", 5, 1)
    assert {e.row["metadata"]["num_terms"] for e in task.train} == {2}


def test_a_path_is_data_and_options_reach_fields_and_heldout(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_text(
        "".join(json.dumps({"problem": f"p{i}", "solution": "s", "answer": str(i)}) + "\n" for i in range(9))
    )
    reward = ArithmeticReward()
    task = resolve_task(f"{path}?fields.answer=answer&heldout.size=2", reward=reward)
    assert (task.name, len(task.train), len(task.heldout)) == ("sums", 7, 2)
    assert task.reward is reward
    again = resolve_task(path, {"fields": {"answer": "answer"}, "heldout": {"size": 2}})
    whole = resolve_task(path, fields=Fields(answer="answer"), **{"heldout.size": 2})
    assert list(again.train) == list(whole.train) == list(task.train)
    with pytest.raises(ConfigError, match="did you mean 'answer'"):
        resolve_task(path, {"fields.anwser": "answer"})
    with pytest.raises(ConfigError, match=r"did you mean 'fields\.answer'"):
        resolve_task(path, {"field.answer": "answer"})
    with pytest.raises(DataError, match="did you mean"):
        resolve_task(str(tmp_path / "sum.jsonl"))


def test_a_task_is_returned_as_it_is() -> None:
    task = arithmetic_task(size=3, heldout=1)
    assert resolve_task(task) is task
    with pytest.raises(ConfigError, match="cannot change the task"):
        resolve_task(task, size=5)
    with pytest.raises(ConfigError, match="a task is a name, a path or"):
        resolve_task(3)  # type: ignore[arg-type]


def test_a_registered_task_resolves_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))

    def mine(*, size: int = 2) -> Task:
        return arithmetic_task(size=size, heldout=1)

    register_task("mine", mine)
    register_task("sums", "unipo.tasks.arithmetic:arithmetic_task")
    assert len(resolve_task("mine?size=4").train) == 4
    assert len(resolve_task("sums?size=4").train) == 4
    with pytest.raises(ConfigError, match="exists already"):
        register_task("mine", mine)
    with pytest.raises(ConfigError, match="holds none of"):
        register_task("my:task", mine)


# -- the checker ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Always:
    """A reward that gives every response the same value."""

    value: float | None
    name: str = "always"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        return Scores([self.value] * len(samples), [self.value] * len(samples))


GOOD = arithmetic_task(size=4, heldout=2)


def _task(**changes: object) -> DatasetTask:
    return replace(GOOD, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        (_task(train=()), "has no training examples"),
        (_task(train=GOOD.train + GOOD.train[:1]), "two training examples have the id"),
        (_task(train=(replace(GOOD.train[0], prompt=" "),)), "the prompt is empty"),
        (_task(train=(replace(GOOD.train[0], prompt=({"role": "system", "content": "x"},)),)), "the prompt is empty"),
        (_task(heldout=(replace(GOOD.train[0], id=99),)), "1 held-out prompts are trained on"),
        (_task(reward=Always(1.0)), "the response '' scores 1"),
        (_task(reward=Always(0.0)), "the right answer of 6 of 6 examples does not score 1"),
        (_task(reward=Always(None)), "does not score 1, first example"),
        (_task(reward=Always(float("inf"))), "which is no finite number"),
    ],
)
def test_the_checker_names_the_broken_promise(task: DatasetTask, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        check_task(task)


def test_the_checker_finds_a_reward_that_changes_its_mind() -> None:
    class Fickle:
        name = "fickle"
        calls = 0

        def __call__(self, samples: Sequence[Sample]) -> Scores:
            self.calls += 1
            return Scores([float(self.calls)] * len(samples), [float(self.calls)] * len(samples))

    with pytest.raises(DataError, match="scores the same samples differently the second time"):
        check_task(_task(reward=Fickle()))


def test_the_checker_finds_a_reward_that_drops_samples() -> None:
    class Short:
        name = "short"

        def __call__(self, samples: Sequence[Sample]) -> Scores:
            return Scores([1.0], [1.0])

    with pytest.raises(DataError, match="1 entries in 'total' for 6 samples"):
        check_task(_task(reward=Short()))


def test_the_checker_compares_a_task_with_itself_made_again() -> None:
    with pytest.raises(DataError, match="made again, the task has other training examples"):
        check_task(GOOD, rebuild=lambda: arithmetic_task(size=4, heldout=2, seed=1))


def test_the_checker_says_what_it_could_not_check() -> None:
    silent = check_task(_task(reward=None, heldout=()))
    assert silent.notes == ("nothing is held out", "it has no reward of its own to check")
    nameless = DatasetTask("x", (Example("a", id=0), Example("a", id=1)), (), Always(0.5))
    notes = check_task(nameless).notes
    assert "1 training examples repeat a prompt" in notes
    assert "2 of 2 examples have no answer to check with" in notes


def test_an_answer_that_needs_another_form_is_checked_with_a_writer() -> None:
    @dataclass(frozen=True)
    class Shout:
        name: str = "shout"

        def __call__(self, samples: Sequence[Sample]) -> Scores:
            score: list[float | None] = [float(s.text == f"!{s.answer}!") for s in samples]
            return Scores(score, score)

    task = _task(reward=Shout())
    with pytest.raises(DataError, match="pass respond="):
        check_task(task)
    assert check_task(task, respond=lambda e: f"!{e.answer}!").spelling == "respond"
