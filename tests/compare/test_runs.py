"""Whole comparisons of the shipped model, as small as they can be."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import unipo
from unipo.compare.code import code_state, states, worked_on
from unipo.compare.crew import work
from unipo.compare.outcome import read
from unipo.compare.plan import Budget, Plan
from unipo.compare.run import compare, run_all
from unipo.compare.spelling import parse_arm, plain_train
from unipo.compare.worker import Job, perform
from unipo.errors import ConfigError, TrainingError
from unipo.hold import holding
from unipo.training.config import to_dict

TINY = {"sampling.max_tokens": 12, "eval.prompts": 4}


def quiet(text: str) -> None:
    """Progress that nobody reads."""


def tiny(*arms: str, **changes: Any) -> Plan:
    base = Plan(
        tuple(parse_arm(a) for a in arms),
        {"scratchpad": "scratchpad"},
        (0,),
        Budget("steps", 2),
        responses=8,
        points=1,
        train=plain_train(TINY),
    )
    return replace(base, **changes)


def scores(folder: Path, plan: Plan) -> list[Any]:
    """What all runs came to, without their times."""
    found = [read(folder / r.place) for r in plan.runs]
    assert all(found)
    return [(o.arm, o.seed, o.final, [(p.steps, p.tokens, p.score) for p in o.curve]) for o in found if o]


@pytest.mark.slow
def test_a_comparison_leaves_numbers_page_and_no_weights(tmp_path: Path) -> None:
    plan = tiny("grpo", "reinforce")
    found = compare(plan, tmp_path, figure=False)
    assert set(found["results"]) == {"grpo", "reinforce"}
    stored = json.loads((tmp_path / "comparison.json").read_text())
    assert stored["results"]["grpo"]["tasks"]["scratchpad"]["final"]["low"] is None  # one seed
    assert "# Comparison" in (tmp_path / "comparison.md").read_text()
    outcome = read(tmp_path / plan.runs[0].place)
    assert outcome is not None
    assert [p.steps for p in outcome.curve] == [0, 1, 2]
    assert outcome.code == code_state()
    assert outcome.cost["updates"] <= 2
    assert not list(tmp_path.rglob("checkpoints"))


def test_the_figure_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    compare(tiny("grpo", seeds=(0, 1)), tmp_path)
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "comparison.png" in (tmp_path / "comparison.md").read_text()


@pytest.mark.slow
def test_a_budget_of_tokens_ends_every_run_at_the_first_step_beyond_it(tmp_path: Path) -> None:
    plan = tiny("grpo", "reinforce", budget=Budget("tokens", 200), points=2)
    outcomes, _ = run_all(plan, tmp_path, 1, quiet)
    for outcome in outcomes:
        lines = (tmp_path / "runs/scratchpad" / outcome.arm / "seed-0/metrics.jsonl").read_text().splitlines()
        spent = [json.loads(text)["tokens/sampled"] for text in lines]
        assert sum(spent[:-1]) < 200 <= sum(spent)
        assert outcome.curve[-1].tokens == sum(spent)
        assert len(outcome.curve) >= 3


def test_a_budget_of_seconds_ends_a_run(tmp_path: Path) -> None:
    outcomes, _ = run_all(tiny("grpo", budget=Budget("seconds", 0.01)), tmp_path, 1, quiet)
    assert outcomes[0].cost["steps"] == 1


def test_tokens_of_a_step_in_which_no_prompt_qualified_are_spent_too(tmp_path: Path) -> None:
    # A reward that never varies: dynamic sampling finds nothing to train on.
    (tmp_path / "flat.py").write_text("def score(completion):\n    return 0.0\n")
    train = plain_train({**TINY, "data.reward": f"{tmp_path}/flat.py:score"})
    plan = tiny("dapo[source.group_size=4,selection.0.rounds=2]", train=train, budget=Budget("tokens", 300), points=0)
    outcomes, failures = run_all(plan, tmp_path / "out", 1, quiet)
    assert failures == {}
    assert outcomes[0].cost["tokens"] >= 300
    assert outcomes[0].cost["updates"] == 0


def test_finished_runs_are_not_repeated_and_more_may_join(tmp_path: Path) -> None:
    run_all(tiny("grpo"), tmp_path, 1, quiet)
    place = tmp_path / tiny("grpo").runs[0].place / "outcome.json"
    before = place.stat().st_mtime_ns
    said: list[str] = []
    outcomes, _ = run_all(tiny("grpo", "reinforce"), tmp_path, 1, said.append)
    assert place.stat().st_mtime_ns == before
    assert [o.arm for o in outcomes] == ["grpo", "reinforce"]
    assert said[0] == "1 of 2 runs are finished already"
    assert len(said) == 2


def test_a_run_that_two_states_of_the_code_made_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny("grpo", points=0)
    place = tmp_path / plan.runs[0].place
    values = to_dict(plan.config(plan.runs[0], tmp_path)) | {"steps": 1}
    job = Job("grpo", "scratchpad", 0, "steps", values, keep=True)
    for code in ("a1", "b2", "c3"):  # as if b2 and c3 had found it stopped at its last checkpoint
        monkeypatch.setattr("unipo.compare.code.code_state", lambda code=code: code)
        (place / "outcome.json").unlink(missing_ok=True)
        assert perform(job) == ""
    outcome = read(place)
    assert outcome is not None
    assert (outcome.code, states([outcome])) == ("a1+b2+c3", ["a1", "b2", "c3"])
    shutil.rmtree(place / "checkpoints")
    assert worked_on(place, begun=False) == "c3"
    (place / "code.txt").unlink()
    assert worked_on(place, begun=True) == "+c3"  # begun before it was noted down


def test_changed_settings_are_an_error(tmp_path: Path) -> None:
    run_all(tiny("grpo"), tmp_path, 1, quiet)
    with pytest.raises(ConfigError, match=r"responses is 16, was 8"):
        run_all(tiny("grpo", responses=16), tmp_path, 1, quiet)


def test_a_run_that_fails_by_itself_is_told_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def score(completion):\n    return float('nan')\n")
    plan = tiny("grpo", train=plain_train({**TINY, "data.reward": f"{tmp_path}/bad.py:score"}))
    outcomes, failures = run_all(plan, tmp_path / "out", 1, quiet)
    assert outcomes == []
    (said,) = failures.items()
    assert said[0] == "grpo on scratchpad, seed 0"
    assert "NaN" in said[1]
    assert len(run_all(plan, tmp_path / "out", 1, quiet)[1]) == 1


def test_a_task_without_held_out_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+2=", "answer": "3"}\n')
    train = plain_train({**TINY, "data": {"data": str(tmp_path / "d.jsonl"), "reward": "numbers"}})
    with pytest.raises(ConfigError, match=r"--with data\.heldout\.size=200"):
        run_all(tiny("grpo", tasks={"d.jsonl": ""}, train=train), tmp_path / "out", 1, quiet)


def test_data_of_the_users_is_a_task(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(12)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = {"data": str(tmp_path / "d.jsonl"), "reward": "numbers", "heldout": {"size": 4}}
    train = plain_train({**TINY, "data": data, "optim.learning_rate": 1e-5})
    outcomes, _ = run_all(tiny("grpo", tasks={"d.jsonl": ""}, train=train), tmp_path / "out", 1, quiet)
    assert len(outcomes) == 1


def test_two_processes_do_not_share_a_directory(tmp_path: Path) -> None:
    with holding(tmp_path), pytest.raises(ConfigError, match="another process is working"), holding(tmp_path):
        pass


# -- several processes, and kills -----------------------------------------------------------------
# A shell's background jobs ignore SIGINT, and so would what the tests start there.
SCRIPT = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from unipo.compare.plan import Budget
from unipo.compare.run import run_all
from tests.compare.test_runs import tiny
run_all(tiny("grpo", "reinforce", seeds=(0, 1), budget=Budget("steps", 6)), Path(sys.argv[1]), int(sys.argv[2]), print)
"""


def start(folder: Path, workers: int) -> subprocess.Popen[str]:
    root = Path(unipo.__file__).parents[1]
    command = [sys.executable, "-c", SCRIPT, str(folder), str(workers)]
    return subprocess.Popen(
        command,
        cwd=root,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(root)},
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_comparison_goes_on_where_it_stopped(tmp_path: Path, kind: signal.Signals) -> None:
    plan = tiny("grpo", "reinforce", seeds=(0, 1), budget=Budget("steps", 6))
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    run_all(plan, whole, 1, quiet)
    process = start(parted, 2)
    deadline = time.time() + 200
    while time.time() < deadline and process.poll() is None and not list(parted.rglob("outcome.json")):
        time.sleep(0.01)
    process.send_signal(kind)
    process.communicate(timeout=60)
    assert process.returncode != 0, "it ended before it could be killed"
    done = {p: p.stat().st_mtime_ns for p in parted.rglob("outcome.json")}
    assert 1 <= len(done) < 4
    deadline = time.time() + 20  # orphaned workers notice within moments that nobody listens
    while (others := workers_of(parted)) and time.time() < deadline:
        time.sleep(0.05)
    assert others == []
    run_all(plan, parted, 1, quiet)
    assert all(p.stat().st_mtime_ns == at for p, at in done.items())
    assert scores(parted, plan) == scores(whole, plan)


def workers_of(folder: Path) -> list[str]:
    """Processes that work in a directory: they hold its workers.log open."""
    found = []
    for handles in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(os.readlink(h) == str(folder / "workers.log") for h in handles.iterdir()):
                found.append(handles.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_an_error_in_a_worker_arrives_as_it_was(tmp_path: Path) -> None:
    plan = tiny("grpo", seeds=(0, 1), train=plain_train({**TINY, "sampling.max_tokens": 100_000}))
    with pytest.raises(ConfigError, match="leaves no room for a prompt"):
        run_all(plan, tmp_path, 2, quiet)


def test_a_job_that_cannot_be_written_down_ends_the_comparison(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    jobs = [Job(arm, "t", 0, "steps", {"run": str(tmp_path / "file" / arm)}) for arm in ("a", "b")]
    with pytest.raises(ConfigError, match="cannot write into"):
        work(jobs, 2, tmp_path, lambda job, reason: None)


def test_half_an_answer_ends_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dying").write_text("#!/bin/sh\nread line; printf '{\"unfini'; exit 3\n")
    (tmp_path / "dying").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "dying"))
    jobs = [Job(arm, "t", 0, "steps", {"run": str(tmp_path / arm)}) for arm in ("a", "b")]
    with pytest.raises(TrainingError, match="ended with status 3"):
        work(jobs, 2, tmp_path, lambda job, reason: None)
