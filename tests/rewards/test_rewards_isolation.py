"""Functions in worker processes: deadlines, crashes, replacement, failure policy."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from unipo.errors import ConfigError, RewardError
from unipo.rewards import FunctionReward, Sample, isolation
from unipo.rewards.function import load_function
from unipo.rewards.isolation import WorkerPool, file_target

FILE = Path(__file__).with_name("reward_functions.py")


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads process states from /proc")


def still_runs(pid: int) -> bool:
    """Whether the process is neither gone nor waiting to be reaped, given ten seconds to end."""
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(200):
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except (FileNotFoundError, ProcessLookupError):
            return False
        time.sleep(0.05)
    return True


def reward(name: str, **settings) -> FunctionReward:
    return FunctionReward(f"{FILE}:{name}", **settings)


def samples(*texts: str, **row) -> list[Sample]:
    return [Sample("a prompt", text, "an answer", row, length=1) for text in texts]


def test_a_hanging_call_is_killed_and_the_other_results_are_kept():
    scores = reward("hangs_on_hang", seconds=1.5, workers=2, on_error="skip")(samples("a", "hang", "b", "c", "hang"))
    assert scores.total == [1.0, None, 1.0, 1.0, None]
    assert scores.events == {"timeout": 2}


def test_a_hanging_call_stops_the_run_by_default_and_shows_the_sample():
    with pytest.raises(RewardError, match=r"deadline.*sample 1 of 2(.|\n)*a prompt(.|\n)*please hang(.|\n)*1 s"):
        reward("hangs_on_hang", seconds=1.0)(samples("a", "please hang"))


def test_the_pool_goes_on_after_a_kill():
    pool = WorkerPool(file_target(FILE, "hangs_on_hang"), workers=1)
    late, fine = pool.run([{"completion": "hang"}, {"completion": "a"}], seconds=1.0)
    assert late.failure is not None
    assert late.failure.kind == "timeout"
    assert (fine.value, fine.failure) == (1.0, None)
    assert [o.value for o in pool.run([{"completion": "b"}], seconds=30.0)] == [1.0]
    pool.close()


@needs_proc
def test_a_killed_worker_takes_its_children_with_it(tmp_path):
    note = tmp_path / "pid"
    scores = reward("hangs_with_child", seconds=1.5, on_error="skip")(samples("hang", pid_file=str(note)))
    assert scores.events == {"timeout": 1}
    assert not still_runs(int(note.read_text()))


def test_a_worker_that_dies_costs_only_its_own_sample():
    scores = reward("exits", workers=1, on_error="skip")(samples("a", "die", "exit", "b"))
    assert scores.total == [1.0, None, None, 1.0]
    assert scores.events == {"died": 1, "raised": 1}


def test_workers_are_kept_between_calls():
    pids = reward("worker_pid", workers=1)
    first, second = pids(samples("a", "b")).total, pids(samples("c")).total
    assert {*first, *second} == {first[0]}
    assert first[0] != os.getpid()


def test_workers_do_not_inherit_torch():
    import torch  # noqa: F401  the parent has it loaded

    assert reward("has_torch")(samples("a")).total == [0.0]


def test_printing_does_not_disturb_the_results():
    assert reward("prints", workers=1)(samples("a", "b")).total == [2.0, 2.0]


def test_calls_from_several_threads_get_their_own_results():
    made = reward("length_of_text", workers=2)
    results: dict[int, list[float | None]] = {}

    def call(k: int) -> None:
        results[k] = made(samples("x" * k, "x" * (k + 1))).total

    threads = [threading.Thread(target=call, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert results == {k: [k + 1.0, k + 2.0] for k in range(6)}


def test_more_calls_than_workers_come_back_in_order():
    texts = ["x" * k for k in range(50)]
    assert reward("length_of_text", workers=3)(samples(*texts)).total == [k + 1.0 for k in range(50)]


@pytest.mark.parametrize("isolate", [True, False])
def test_an_exception_shows_prompt_completion_and_traceback(isolate):
    with pytest.raises(RewardError) as caught:
        reward("divides", isolate=isolate)(samples("1", "0", "2"))
    message = str(caught.value)
    for piece in ("'divides'", "sample 1 of 3", "'a prompt'", "'0'", "ZeroDivisionError", "return 1 / int(completion)"):
        assert piece in message
    skipped = reward("divides", isolate=isolate, on_error="skip")(samples("1", "0", "2", "no number"))
    assert skipped.total == [1.0, None, 0.5, None]
    assert skipped.events == {"raised": 2}


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("nan", "non_finite"),
        ("inf", "non_finite"),
        ("text", "not_number"),
        ("list", "not_number"),
        ("object", "not_number"),
    ],
)
def test_a_value_that_is_no_finite_number_is_an_error_or_counted(isolate, text, kind):
    with pytest.raises(RewardError, match=kind):
        reward("odd_values", isolate=isolate)(samples("three", text))
    scores = reward("odd_values", isolate=isolate, on_error="skip")(samples("three", text, "true"))
    assert scores.total == [3.0, None, 1.0]
    assert scores.events == {kind: 1}


def test_none_is_an_abstention_unless_forbidden():
    allowed = reward("odd_values")(samples("none", "three"))
    assert (allowed.total, allowed.events) == ([None, 3.0], {"abstained": 1})
    with pytest.raises(RewardError, match="returned None"):
        reward("odd_values", allow_none=False)(samples("none", "three"))
    skipped = reward("odd_values", allow_none=False, on_error="skip")(samples("none", "three"))
    assert (skipped.total, skipped.events) == ([None, 3.0], {"missing": 1})


def test_a_long_completion_is_shortened_in_the_error():
    with pytest.raises(RewardError) as caught:
        reward("divides", isolate=False)(samples("x" * 100_000))
    assert "(100000 characters)" in str(caught.value)
    assert len(str(caught.value)) < 6000


def test_an_edited_file_is_read_again(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # for the worker, and here: Python writes .pyc files,
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = tmp_path / "edited.py"
    for number in (1.0, 2.0):
        file.write_text(f"def score(completion):\n    return {number}\n")
        os.utime(file, (1e9, 1e9))  # which know a file by its size and the second in which it was written
        assert FunctionReward(f"{file}:score", workers=1)(samples("x")).total == [number]
        same = FunctionReward(f"{tmp_path}/../{tmp_path.name}/edited.py:score", workers=1)
        assert same(samples("x")).total == [number]
    pools = [key[1] for key in isolation._POOLS if key[1].path == str(file.resolve())]
    assert len(pools) == 2  # one for each spelling of its path, none of the file as it was
    assert len({target.digest for target in pools}) == 1


def test_a_reward_keeps_the_function_it_was_made_of_when_its_file_is_edited(tmp_path):
    file = tmp_path / "kept.py"
    source = "import time\ndef score(completion):\n    time.sleep(9 * (completion == 'hang'))\n    return {}\n"
    file.write_text(source.format(1.0))
    older = FunctionReward(f"{file}:score", workers=1, seconds=1.0, on_error="skip")
    assert older(samples("x")).total == [1.0]
    function = load_function(f"{file}:score")
    file.write_text(source.format(2.0))
    assert older(samples("hang", "x")).total == [None, 1.0]  # the worker that takes over runs what the killed one ran
    assert FunctionReward(function, workers=1)(samples("x")).total == [1.0]
    newer = FunctionReward(f"{file}:score", workers=1)
    assert [newer(samples("x")).total, older(samples("x")).total, newer(samples("x")).total] == [[2.0], [1.0], [2.0]]


def test_a_file_that_fails_to_load_in_the_worker_is_an_error(tmp_path):
    path = tmp_path / "moody.py"
    path.write_text(
        "import __main__\nif getattr(__main__, '__file__', '').endswith('worker.py'):\n    raise RuntimeError('not today')\n"
        "def score(completion):\n    return 1.0\n"
    )
    made = FunctionReward(f"{path}:score", workers=1)
    with pytest.raises(RewardError, match=r"could not load(.|\n)*not today"):
        made(samples("a"))


def test_a_lambda_without_cloudpickle_needs_a_file_or_an_explicit_choice(monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"Put it in a file.*cloudpickle.*isolate=False"):
        FunctionReward(lambda completion: len(completion))
    assert FunctionReward(lambda completion: len(completion), isolate=False)(samples("abc")).total == [3.0]


def test_a_lambda_travels_with_cloudpickle():
    pytest.importorskip("cloudpickle")
    assert FunctionReward(lambda completion: len(completion))(samples("abc")).total == [3.0]


def test_a_function_of_a_script_is_refused_or_travels_by_value(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from unipo.rewards import FunctionReward, Sample\n"
        "from unipo.errors import ConfigError\n"
        "print('top level runs once')\n"
        "def score(completion):\n    return len(completion)\n"
        "try:\n    print(FunctionReward(score)([Sample('p', 'abc')]).total)\n"
        "except ConfigError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("top level runs once") == 1
    assert "[3.0]" in done.stdout or "__main__" in done.stdout


@needs_proc
def test_no_worker_outlives_its_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal\nfrom unipo.rewards import FunctionReward, Sample\n"
        f"made = FunctionReward({str(FILE) + ':worker_pid'!r}, workers=1)\n"
        "print(int(made([Sample('p', 'abc')]).total[0]), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert not still_runs(int(done.stdout))


@needs_proc
def test_a_worker_stuck_in_a_call_ends_with_its_parent(tmp_path):
    note, script = tmp_path / "pid", tmp_path / "script.py"
    (tmp_path / "stuck.py").write_text(
        "import os, time\ndef score(completion, note):\n"
        "    with open(note + '.part', 'w') as file:\n        file.write(str(os.getpid()))\n"
        "    os.rename(note + '.part', note)\n    time.sleep(3600)\n"
    )
    script.write_text(
        "import os, signal, threading, time\nfrom unipo.rewards import FunctionReward, Sample\n"
        f"made = FunctionReward({str(tmp_path / 'stuck.py') + ':score'!r}, seconds=600)\n"
        f"note = {str(note)!r}\n"
        "threading.Thread(target=made, args=([Sample('p', 'a', row={'note': note})],), daemon=True).start()\n"
        "while not os.path.exists(note):\n    time.sleep(0.02)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, str(script)], timeout=60, check=False)
    assert not still_runs(int(note.read_text()))
