"""What a full disk, a damaged file or a missing permission does to a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import unipo
from tests.training.conftest import metrics, quick
from unipo.errors import CheckpointError, ConfigError
from unipo.hold import hold, is_held
from unipo.training.checkpoint import list_checkpoints, newest_good, save_checkpoint, verify_checkpoint
from unipo.training.rundir import RunDir, new_run_path


def corrupt(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(bytes(data))


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    quick(run, steps=3, **{"save.every": 1, "save.keep": 0})
    corrupt(run / "checkpoints" / "step-000003" / "trainer.pt")
    quick(run, steps=4, resume=True, **{"log.progress": True})
    assert [m["step"] for m in metrics(run)] == [1, 2, 3, 4]
    assert "step-000003: trainer.pt is damaged" in capsys.readouterr().err
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["started", "damaged checkpoint passed over", "started"]
    assert [e["step"] for e in events] == [0, 2, 2]


def test_a_resume_without_a_checkpoint_begins_anew_and_loses_no_event(tmp_path: Path, rows: Any) -> None:
    run = tmp_path / "run"
    data = rows([*({"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(8)), {"prompt": "", "answer": "1"}])
    settings = {"data.data": data, "data.bad_rows": "skip", "reward": "numbers"}
    quick(run, steps=1, **settings)
    shutil.rmtree(run / "checkpoints")
    quick(run, steps=1, resume=True)
    events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert events[:2] == ["data", "started"]
    assert events.count("data") == events.count("started") == 1
    assert [m["step"] for m in metrics(run)] == [1]


def test_a_log_that_a_kill_cut_within_a_character_is_resumed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    quick(run, steps=1)
    for name in ("completions", "metrics"):
        file = run / f"{name}.jsonl"
        whole = file.read_bytes()
        file.write_bytes(whole + '{"step": 1, "text": "é'.encode()[:-1])
    quick(run, steps=1, resume=True)
    assert file.read_bytes() == whole


def test_two_runs_that_start_together_get_two_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unipo.training.rundir.time.strftime", lambda form: "20260101-120000")
    made = [new_run_path("grpo", tmp_path) for _ in range(3)]
    assert [p.name for p in made] == [f"grpo-20260101-120000{end}" for end in ("", "-2", "-3")]
    assert all(p.is_dir() for p in made)


def test_when_every_checkpoint_is_damaged_the_run_stops(tmp_path: Path) -> None:
    run = tmp_path / "run"
    quick(run, steps=1)
    corrupt(run / "checkpoints" / "step-000001" / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match="every checkpoint"):
        quick(run, steps=2, resume=True)


@pytest.mark.parametrize("name", ["trainer.pt", "checksums.json", "model/weights"])
def test_a_missing_file_is_found_out(name: str, tmp_path: Path) -> None:
    def model(folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_bytes(b"123")

    path = save_checkpoint(tmp_path, 5, model, {"step": 5})
    assert verify_checkpoint(path) is None
    (path / name).unlink()
    assert "missing" in str(verify_checkpoint(path))


def test_an_unfinished_checkpoint_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".step-000007.partial").mkdir()
    assert list_checkpoints(tmp_path) == []
    assert newest_good(tmp_path) is None


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    quick(tmp_path / "run", steps=4, **{"save.every": 1, "save.keep": 2})
    assert [s for s, _ in list_checkpoints(tmp_path / "run" / "checkpoints")] == [4, 3]


@pytest.mark.slow
def test_a_full_disk_says_so_and_leaves_earlier_checkpoints_whole(tmp_path: Path) -> None:
    # A file-size limit makes writes fail in the middle, as a full disk does; the first checkpoint was written before.
    quick(tmp_path / "run", steps=1)
    script = (
        "import resource, signal, sys; from pathlib import Path; from tests.training.conftest import quick;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000));"
        "quick(Path(sys.argv[1]), steps=2, resume=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")],
        cwd=Path(unipo.__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "could not write checkpoint" in done.stderr
    assert "go on with --resume" in done.stderr
    assert [s for s, _ in list_checkpoints(tmp_path / "run" / "checkpoints")] == [1]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*partial"))
    assert verify_checkpoint(tmp_path / "run" / "checkpoints" / "step-000001") is None


def test_a_run_directory_that_cannot_be_written_is_an_error_before_anything_is_loaded(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    with pytest.raises(ConfigError, match="cannot write the run directory"):
        quick(blocker / "run", **{"policy.model": "/nowhere/at/all"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_write_permission_is_an_error(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="cannot write the run directory"):
        quick(locked / "run")


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    quick(tmp_path / "run", steps=1)
    with pytest.raises(ConfigError, match="already holds a run"):
        quick(tmp_path / "run", steps=1)


def test_a_resumed_run_goes_on_by_its_own_settings_and_refuses_others(tmp_path: Path) -> None:
    run = tmp_path / "run"
    quick(run, "rloo", steps=1, **{"set": {"source.group_size": 2}, "sampling.max_tokens": 8})
    before = (run / "config.yaml").read_text()
    for other, said in (
        ({"lr": 0.5}, r"leave out optim.learning_rate = 0.5 \(was 0.0001\)"),
        ({"set": {"source.group_size": 4}}, "leave out set = {'source.group_size': 4}"),
        ({"method": "grpo"}, r"leave out method = 'grpo' \(was 'rloo'\)"),
        ({"steps": 0}, "the run was started for 1 steps; --steps 0 would cut it short"),
        ({"stps": 3}, "did you mean 'steps'"),
    ):
        with pytest.raises(ConfigError, match=said):
            unipo.train(**{"run": str(run), "resume": True, **other})
    assert (run / "config.yaml").read_text() == before
    # Said again, not changed.
    same = {"model": "starter", "task": "scratchpad", "method": "rloo", "lr": 1e-4, "sampling.max_tokens": 8}
    result = unipo.train(run=str(run), resume=True, steps=2, **{"log.completions": 1}, **same)
    assert (result.method, result.steps) == ("rloo", 2)
    assert unipo.train(run=str(run), resume=True).steps == 2
    with pytest.raises(ConfigError, match="--resume needs --run"):
        unipo.train(resume=True)


def test_what_a_run_left_to_its_method_may_be_left_to_it_again(tmp_path: Path) -> None:
    run, left = tmp_path / "run", {"policy.reference": "auto"}
    quick(run, "sdpo", steps=1, **{"set": {"source.group_size": 2}, "sampling.max_tokens": 8}, **left)
    assert "reference: ema" in (run / "config.yaml").read_text()
    assert unipo.train(run=str(run), resume=True, steps=2, **left).steps == 2
    with pytest.raises(ConfigError, match=r"leave out policy.reference = 'frozen' \(was 'ema'\)"):
        unipo.train(run=str(run), resume=True, **{"policy.reference": "frozen"})


def test_one_process_at_a_time_works_in_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    quick(run, steps=1)
    assert not is_held(run)
    with hold(run), pytest.raises(ConfigError, match=f"another process is working in {run}"):
        quick(run, steps=2, resume=True)
    assert len(metrics(run)) == 1
    assert quick(run, steps=2, resume=True).steps == 2


def test_a_reader_in_the_way_for_an_instant_turns_no_run_away(tmp_path: Path) -> None:
    with hold(tmp_path):
        assert is_held(tmp_path)
        reader = (tmp_path / ".lock").open()
    fcntl = pytest.importorskip("fcntl")
    fcntl.flock(reader, fcntl.LOCK_SH)
    threading.Timer(0.2, reader.close).start()
    hold(tmp_path).close()
    assert not is_held(tmp_path)
    assert not is_held(tmp_path / "nowhere")


def test_nothing_to_resume_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to resume"):
        quick(tmp_path / "none", resume=True)


@pytest.mark.parametrize("name", ["completions", "events"])
def test_files_that_no_run_wrote_are_left_alone(name: str, tmp_path: Path) -> None:
    rows = '{"prompt": "1+1=", "completion": "2"}\n'
    (tmp_path / f"{name}.jsonl").write_text(rows)
    with pytest.raises(ConfigError, match=rf"holds {name}\.jsonl, which no run wrote; choose another with --run"):
        quick(tmp_path, steps=1)
    assert (tmp_path / f"{name}.jsonl").read_text() == rows
    assert not is_held(tmp_path)


def test_a_run_that_ends_while_another_waits_for_its_directory_keeps_its_logs(tmp_path: Path) -> None:
    first = RunDir(tmp_path, resume=False)
    said: list[str] = []

    def begin() -> None:
        try:
            RunDir(tmp_path, resume=False).close()
        except ConfigError as error:
            said.append(str(error))

    second = threading.Thread(target=begin)
    second.start()
    first.metrics(1, {"loss": 1.0})
    first.close()
    second.join()
    assert "already holds a run" in said[0]
    assert len(metrics(tmp_path)) == 1


def test_settings_that_files_cannot_hold_as_they_are_may_be_said_again(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"set": {"source.branching": (2, 2)}, "sampling.max_tokens": 8}
    quick(tmp_path / "run", "spo-tree", steps=1, **asked)
    assert quick(tmp_path / "run", steps=2, resume=True, **asked).steps == 2


def test_a_resume_with_other_weights_of_rewards_is_refused(tmp_path: Path) -> None:
    quick(tmp_path / "run", steps=1, reward={"numbers": 0.9, "format:answer": 0.1})
    with pytest.raises(
        ConfigError, match=r"'0.9\*numbers \+ 0.1\*format:answer', now it is '0.1\*numbers \+ 0.9\*format:answer'"
    ):
        quick(tmp_path / "run", steps=2, resume=True, reward={"numbers": 0.1, "format:answer": 0.9})
    assert quick(tmp_path / "run", steps=2, resume=True, reward={"numbers": 0.9, "format:answer": 0.1}).steps == 2
