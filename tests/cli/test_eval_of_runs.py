"""`unipo eval` of a run: on what, by which reward, with which plugins, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import unipo as library
from tests.training.conftest import own_task, quick
from unipo.push import pack
from unipo.registry import _METHODS
from unipo.rewards import resolve_reward
from unipo.tasks.task import Example

from .conftest import PLUGIN_TASK, Said, forget_plugin

Call = Callable[..., Said]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step of the shipped model on rows of a file, of which none was held out."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"question": f"{a}+11=", "answer": str(a + 11)} for a in range(21, 27)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data.data": str(folder / "rows.jsonl"), "reward": "numbers", "sampling.max_tokens": 8}
    quick(folder / "run", steps=1, **settings)
    return folder / "run"


def changed(run: Path, to: Path, **data: Any) -> Path:
    """A copy of a run with other settings of its data."""
    shutil.copytree(run, to)
    config = yaml.safe_load((to / "config.yaml").read_text())
    config["data"] |= data
    (to / "config.yaml").write_text(yaml.safe_dump(config))
    return to


def test_eval_of_a_run_that_held_nothing_out_asks_for_problems(unipo: Call, trained: Path, tmp_path: Path) -> None:
    rows = str(trained.parent / "rows.jsonl")
    for asked in ((), ("--data.heldout.size", 2)):  # the run's own rows, however they are divided now
        said = unipo("eval", trained, *asked)
        assert said.status == 2
        assert "the run held nothing out, and was trained on these" in said.err
    kept_out = changed(trained, tmp_path / "kept-out", heldout={"size": 2})
    found = unipo("eval", kept_out, "--json").json
    assert (found["problems"], found["heldout"]) == (2, True)
    assert "held other prompts out" in unipo("eval", kept_out, "--data.heldout.size", 4).err
    (tmp_path / "others.jsonl").write_text('{"question": "2+11=", "answer": "13"}\n')
    for more, heldout in ((("--data", rows), False), (("--data", "others.jsonl"), True)):
        assert unipo("eval", kept_out, "--reward", "numbers", *more, "--json").json["heldout"] is (heldout)
    assert unipo("eval", kept_out, "--data.heldout.file", "others.jsonl", "--json").json["heldout"] is True
    assert unipo("eval", "starter", "--limit", 1, "--max-tokens", 4, "--json").json["heldout"] is None


def test_a_card_says_which_problems_were_trained_on(unipo: Call, trained: Path, tmp_path: Path) -> None:
    run = changed(trained, tmp_path / "run")
    said = unipo("eval", run, "--data", trained.parent / "rows.jsonl", "--reward", "numbers").out
    assert "not held out: the run was trained on these problems" in said
    (tmp_path / "others.jsonl").write_text('{"question": "2+11=", "answer": "13"}\n')
    pack(str(run))
    card = (run / "checkpoints/step-000001/model/README.md").read_text()
    assert "| rows.jsonl (trained on) |" in card
    assert "On held-out problems, but for the rows that say (trained on)" in card
    assert "model-index" not in card
    assert unipo("eval", run, "--data", "others.jsonl", "--reward", "numbers").status == 0
    pack(str(run))
    card = (run / "checkpoints/step-000001/model/README.md").read_text()
    assert "| others.jsonl | after" in card
    assert [r["dataset"]["name"] for r in yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]] == [
        "others.jsonl"
    ]


def score(completion: str) -> float:
    return 0.25


def test_what_came_from_python_is_not_replaced_in_silence(unipo: Call, tmp_path: Path) -> None:
    rows = tuple(Example(f"{n}+1=", str(n + 1), id=n) for n in range(8))
    task = SimpleNamespace(name="mine", train=rows[:4], heldout=rows[4:], reward=resolve_reward("numbers"))
    short = {"steps": 1, "prompts": 2, "sampling.max_tokens": 6, "eval.prompts": 2, "log.progress": False}
    library.train(task=task, run="by-task", **short)
    said = unipo("eval", "by-task")
    assert said.status == 2
    assert "the run's task came from Python (unipo.train) and cannot be made again here: give --task" in said.err
    assert unipo("eval", "by-task", "--task", "scratchpad", "--limit", 1, "--json").json["task"].startswith("scratch")
    (tmp_path / "by-task" / "method.json").unlink()  # as of a run from before it was noted down
    assert "the run's task came from Python" in unipo("eval", "by-task").err
    library.train(task="scratchpad", reward=score, run="by-reward", **short)
    said = unipo("eval", "by-reward", "--limit", 1)
    assert said.status == 2
    assert "the run's reward came from Python" in said.err
    assert "give --reward" in said.err
    for more in (("--reward", "numbers"), ("--task", "scratchpad")):
        assert unipo("eval", "by-reward", "--limit", 1, *more).status == 0


def test_eval_of_a_run_stops_where_the_run_does_and_loads_its_plugins(unipo: Call, tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "own_task.py").write_text(PLUGIN_TASK)
    settings = {"data.task": "sums-of-a-plugin", "plugin": ["plugins/own_task.py"], "sampling.stop": "1"}
    quick(tmp_path / "run", steps=1, **settings)
    forget_plugin()  # as in another process
    record = unipo("eval", "run", "--out", "found.json", "--json").json
    assert (record["task"], record["stop"]) == ("sums-of-a-plugin", ["1"])
    for problem in json.loads((tmp_path / "found.json").read_text())["each"]:
        assert all("1" not in response["text"][:-1] for response in problem["responses"])
    assert unipo("eval", "run", "--stop", "2", "--stop", "3", "--json").json["stop"] == ["2", "3"]
    assert len(list((tmp_path / "run" / "evaluations").glob("*.json"))) == 2
    forget_plugin()
    (tmp_path / "plugins" / "own_task.py").rename(tmp_path / "own_task.py")
    assert "is not a file" in unipo("eval", "run").err
    assert unipo("eval", "run", "--plugin", "own_task.py").status == 0
    forget_plugin()


def test_a_run_with_continuous_tokens_is_not_sampled_with_plain_ones(unipo: Call, tmp_path: Path) -> None:
    quick(tmp_path / "run", "cot2-grpo", steps=1, **own_task("cot2-grpo"))
    for command in (("eval", "run"), ("eval", "starter", "--against", "run", "--limit", 1), ("generate", "run")):
        said = unipo(*command, *(("--prompt", "1") if command[0] == "generate" else ()))
        assert said.status == 2
        assert "was trained with cot2-grpo, whose responses are continuous tokens" in said.err
        assert "run/evaluations.jsonl" in said.err


CONTINUOUS = """
from unipo.method import Paper
from unipo.registry import get_method, register
register(get_method("cot2-grpo").but(name="continuous-of-a-plugin", paper=Paper("x"), summary="s"))
"""


def test_a_method_of_a_plugin_is_looked_at_too(unipo: Call, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "continuous.py").write_text(CONTINUOUS)
    run = changed(trained, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {"method": "continuous-of-a-plugin", "plugin": ["continuous.py"]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    asked = ("generate", "run", "--prompt", "1+1=", "--max-tokens", 2)
    try:
        assert "was trained with continuous-of-a-plugin, whose responses" in unipo(*asked).err
    finally:
        _METHODS.pop("continuous-of-a-plugin", None)
        sys.modules.pop("unipo_plugin_continuous", None)
    (tmp_path / "continuous.py").unlink()
    said = unipo(*asked)
    assert said.status == 0
    assert "run: cannot tell whether its responses are continuous tokens (plugin 'continuous.py' is" in said.err


def test_a_run_with_a_setting_that_is_retired_can_be_sampled(unipo: Call, trained: Path, tmp_path: Path) -> None:
    run = changed(trained, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["policy"]["compute"] = "float64"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert unipo("generate", "run", "--prompt", "1+1=", "--max-tokens", 2).status == 0
    assert unipo("eval", "starter", "--against", "run", "--limit", 1, "--max-tokens", 4).status == 0
