"""The minimum non-negative sum: its traces by hand, and the split."""

from __future__ import annotations

import pytest

from unipo.errors import ConfigError
from unipo.tasks.check import check_task
from unipo.tasks.mnns import MnnsReward, mnns_task, smallest_sum, sum_traces, vocabulary
from unipo.tasks.registry import resolve_task
from unipo.tasks.task import Example, Sample


def test_one_and_two() -> None:
    assert sum_traces((1, 2)) == [(-1, 1), (1, 3), (1, -1), (-1, -3)]
    assert smallest_sum((1, 2)) == 1


def test_best_traces_end_lowest_first_and_minus_comes_before_plus() -> None:
    # 1, 1, 2: -1 -1 +2 = 0 and +1 +1 -2 = 0 come first, then 2 as -1 +1 +2 and +1 -1 +2; negative ones at the end
    found = sum_traces((1, 1, 2))
    assert found[:4] == [(-1, -2, 0), (1, 2, 0), (-1, 0, 2), (1, 0, 2)]
    assert [trace[-1] for trace in found] == [0, 0, 2, 2, 4, -2, -2, -4]


def test_no_better_answer_exists_and_every_choice_of_signs_is_there() -> None:
    task = mnns_task(largest=4)
    for example in (*task.train, *task.heldout):
        sums = [trace[-1] for trace in sum_traces(example.row["digits"])]
        assert example.answer == f"S{min(s for s in sums if s >= 0)}"
        traces = example.row["traces"]
        assert len(traces) == 16
        assert [trace[-1] for trace in traces] == [f"S{s}" for s in sums]
        assert sum(trace[0] == f"S{example.row['digits'][0]}" for trace in traces) == 8
        assert example.responses[0].text == " ".join(traces[0])
        assert traces[0][-1] == example.answer


def test_the_papers_size_and_split_by_set_of_digits() -> None:
    task = mnns_task()
    assert len(task.train) + len(task.heldout) == 9**4
    train = {tuple(sorted(e.row["digits"])) for e in task.train}
    heldout = {tuple(sorted(e.row["digits"])) for e in task.heldout}
    assert not train & heldout
    assert (len(train), len(heldout)) == (396, 99)  # 495 sets of four digits, a fifth of them held out
    assert len(vocabulary()) == 90  # the authors' 89 and a mark for unknown words


def test_reward_reads_the_last_word() -> None:
    texts = ["S1 S-2 S3", "S3", "S-3", "S3 S1", "", "3"]
    scores = MnnsReward()([Sample("", text, "S3") for text in texts])
    assert scores.score == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert scores.extracted == ["S3", "S3", "S-3", "S1", None, "3"]


def test_it_keeps_what_tasks_keep() -> None:
    def respond(example: Example) -> str:
        return " ".join(f"S{s}" for s in sum_traces(example.row["digits"])[0])

    check_task(mnns_task(largest=5), rebuild=lambda: mnns_task(largest=5), respond=respond)
    assert resolve_task("mnns?digits=3&largest=3").name == "mnns"


def test_settings_that_cannot_work_are_refused() -> None:
    for bad in ({"digits": 1}, {"smallest": 0}, {"smallest": 5, "largest": 4}, {"heldout": 1.0}):
        with pytest.raises(ConfigError):
            mnns_task(**bad)  # type: ignore[arg-type]


def test_a_response_that_ends_early_has_not_answered() -> None:
    """1 + 1 - 2 = 0 is a partial sum of 1 1 2 2 and the answer, too."""
    row = {"digits": [1, 1, 2, 2]}
    scores = MnnsReward()([Sample("", text, "S0", row) for text in ("S-1 S-2 S0", "S-1 S-2 S-2 S0")])
    assert scores.score == [0.0, 1.0]
    assert scores.extracted == [None, "S0"]
