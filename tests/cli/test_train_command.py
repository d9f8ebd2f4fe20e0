from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from unipo.command.flags import option_names
from unipo.command.help_text import TRAIN_HELP
from unipo.command.train import read
from unipo.training.config import TrainConfig
from unipo.training.defaults import STARTER_DEFAULTS

from .conftest import Said

Call = Callable[..., Said]

# As little as a run can be: two prompts, two responses each, no evaluation.
TINY = (
    *("--prompts", "2", "--set", "source.group_size=2", "--max-tokens", "6"),
    *("--eval.no-before", "--eval.no-after", "--eval.prompts", "2"),
)


# -- what the options mean ----------------------------------------------------------------------
def test_without_model_or_task_the_starters_settings_lie_below_the_users() -> None:
    plain = read([]).config
    assert plain.method == STARTER_DEFAULTS["method"]
    assert plain.steps == STARTER_DEFAULTS["steps"]
    assert plain.sampling.max_tokens == STARTER_DEFAULTS["sampling"]["max_tokens"]
    assert plain.optim.learning_rate == STARTER_DEFAULTS["optim"]["learning_rate"]
    mine = read(["--method", "grpo", "--lr", "5e-5"]).config
    assert (mine.method, mine.optim.learning_rate) == ("grpo", 5e-5)
    assert mine.sampling.max_tokens == STARTER_DEFAULTS["sampling"]["max_tokens"]


@pytest.mark.parametrize("named", [["--model", "a/b"], ["--task", "countdown"], ["--data.data", "x.jsonl"]])
def test_a_named_model_task_or_data_switches_the_starters_settings_off(named: list[str]) -> None:
    config = read(named).config
    assert config.method == TrainConfig().method
    assert config.optim.learning_rate is None


def test_short_options_are_the_long_ones() -> None:
    short = read(
        [
            "--model",
            "a/b",
            "--data",
            "d.jsonl",
            "--reward",
            "maths",
            "--max-tokens",
            "9",
            "--lr",
            "1e-5",
            "--lora-rank",
            "4",
        ]
    ).config
    long = read(
        [
            "--policy.model",
            "a/b",
            "--data.data",
            "d.jsonl",
            "--data.reward",
            "maths",
            "--sampling.max-tokens",
            "9",
            "--optim.learning-rate",
            "1e-5",
            "--policy.lora.rank",
            "4",
        ]
    ).config
    assert short == long
    assert (
        read(["--model", "a/b", "--data", "d", "--data.fields.prompt", "question"]).config.data.fields.prompt
        == "question"
    )


def test_options_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: a/b\nlr: 1e-5\nsteps: 7\noptim: {schedule: cosine, warmup-steps: 3}\nsampling.max_tokens: 99\n"
        "data: d.jsonl\nset: {objective.high: 0.3, objective.low: 0.1}\nplugin: [one.py]\n"
    )
    config = read(["--config", str(file), "--steps", "8", "--set", "objective.high=0.4", "--plugin", "two.py"]).config
    assert (config.policy.model, config.data.data, config.steps) == ("a/b", "d.jsonl", 8)
    assert (config.optim.learning_rate, config.optim.schedule, config.optim.warmup_steps) == (1e-5, "cosine", 3)
    assert config.sampling.max_tokens == 99
    assert config.set == {"objective.high": 0.4, "objective.low": 0.1}
    assert config.plugin == ("one.py", "two.py")
    assert config.method == "grpo"


def test_a_lone_text_is_a_list_of_one(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("{track: wandb, plugin: mine.py, sampling: {stop: '###'}}")
    config = read(["--config", str(file)]).config
    assert (config.log.track, config.plugin, config.sampling.stop) == (("wandb",), ("mine.py",), ("###",))


def test_a_file_may_lie_above_the_starters_settings(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("lr: 5e-5\n")
    config = read(["--config", str(file)]).config
    assert (config.method, config.optim.learning_rate) == (STARTER_DEFAULTS["method"], 5e-5)


def test_every_option_has_help_and_every_help_an_option() -> None:
    assert {f"--{path.replace('_', '-')}" for path in TRAIN_HELP} == set(option_names(TrainConfig)) - {"--set"}
    assert all(TRAIN_HELP.values())


def test_help_starts_with_the_common_options(unipo: Call) -> None:
    text = unipo("train", "--help").out
    rows = [row.strip(" |│").partition(" ")[0].rstrip(",") for row in text.splitlines()]
    wanted = ["examples:", "--model", "--data", "--task", "--method", "--steps", "--old-logp", "--data.task"]
    assert [row for row in rows if row in wanted] == wanted


# -- what cannot work ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--optim.learning-rat", "1"], "did you mean --optim.learning-rate?"),
        (["--learning-rate", "1"], "did you mean --optim.learning-rate?"),
        (["--optim.lr", "1"], "did you mean --lr?"),
        (["--no-eval.before"], "did you mean --eval.no-before?"),
        (["stray"], "cannot place 'stray'"),
        (["--method", "grop"], "did you mean 'grpo'?"),
        (["--task", "countdwn"], "did you mean 'countdown'?"),
        (["--reward", "math"], "did you mean 'maths'?"),
        (["--model", "no-such-directory"], "neither a directory nor a Hugging Face id"),
        (["--config", "no.yaml"], "cannot read the configuration 'no.yaml'"),
        (["--lr", "1", "--optim.learning-rate", "2"], "optim.learning_rate is given twice"),
        (["--sampling.top-k", "5"], "top_k = 0"),
        (["--task", "countdown", "--data", "x.jsonl"], "give a task or data, not both"),
        (["--set", "objective.hihg=1"], "did you mean 'high'?"),
        (["--resume"], "--resume needs --run"),
        (["--resume", "--run", "nowhere"], "nothing to resume in nowhere"),
        (["--plugin", "no.py"], "is not a file"),
    ],
)
def test_what_cannot_work_is_one_block_and_status_2(unipo: Call, arguments: list[str], complaint: str) -> None:
    said = unipo("train", "--log.no-progress", *arguments)
    assert said.status == 2
    assert said.err.startswith("unipo: ")
    assert complaint in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("stps: 3", "bad.yaml: unknown key 'stps'; did you mean 'steps'?"),
        ("optim: {learning_rat: 1}", "unknown key 'optim.learning_rat'; did you mean 'optim.learning_rate'?"),
        ("optim: 3", "optim must be a mapping"),
        ("steps: many", "steps must be int, got 'many'"),
        ("{lr: 1, optim: {learning_rate: 2}}", "bad.yaml: optim.learning_rate is given twice"),
        ("[1, 2]", "must hold a mapping"),
        ("a: [", "is not valid YAML"),
        ("set:", "bad.yaml: set must be a mapping"),
        ("set: objective.high=0.3", "bad.yaml: set must be a mapping"),
        ("sampling: {stop: 3}", "sampling.stop must be a list, got 3"),
        ("plugin: [1]", "plugin[0] must be str, got 1"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(unipo: Call, tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    said = unipo("train", "--config", "bad.yaml")
    assert said.status == 2
    assert complaint in said.err


def test_debug_shows_the_traceback(unipo: Call) -> None:
    with pytest.raises(Exception, match="did you mean 'grpo'"):
        unipo("methods", "grop", "--debug")


def test_a_value_of_the_wrong_type_is_status_2(unipo: Call) -> None:
    said = unipo("train", "--steps", "many")
    assert said.status == 2
    assert "--steps" in said.err


# -- runs ---------------------------------------------------------------------------------------
def test_the_run_without_arguments_ends_in_one_json_line(unipo: Call) -> None:
    said = unipo("train", "--steps", 2, "--eval.prompts", 16, "--set", "source.group_size=4", "--json")
    assert said.status == 0
    (text,) = said.out.splitlines()
    record = json.loads(text)
    assert list(record) == ["run", "method", "seconds", "before", "after"]
    assert record["method"] == STARTER_DEFAULTS["method"]
    for end in ("before", "after"):
        assert set(record[end]) == {"accuracy", "low", "high"}
        assert 0 <= record[end]["low"] <= record[end]["accuracy"] <= record[end]["high"] <= 1
    assert "step 2/2" in said.err
    lines = said.err.splitlines()
    assert any(text.startswith("step 2/2") and "s/step" in text for text in lines)  # a step is one line of a log
    assert "Writing" not in said.err
    model = Path(record["run"]) / "checkpoints" / "step-000002" / "model"
    found = unipo("eval", model, "--task", "scratchpad", "--limit", 2, "--max-tokens", 8, "--json").json
    assert found["problems"] == 2


@pytest.mark.slow
def test_a_plugins_method_trains_with_settings_and_is_resumed(unipo: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from unipo import Paper, get_method, register\n"
        "base = get_method('grpo')\n"
        "if 'plugged-in-for-training' not in __import__('unipo').catalogue():\n"
        "    register(base.but(name='plugged-in-for-training', paper=Paper('Mine'), regularisers=()))\n"
    )
    chosen = ("--plugin", "mine.py", "--method", "plugged-in-for-training", "--set", "objective.high=0.3", "--run", "r")
    said = unipo("train", *chosen, *TINY, "--steps", 1)
    assert said.status == 0, said.err
    stored = yaml.safe_load(Path("r/config.yaml").read_text())
    assert stored["set"] == {"objective.high": 0.3, "source.group_size": 2}
    assert "1.3)" in Path("r/method.txt").read_text()
    assert "already holds a run" in unipo("train", *chosen, *TINY, "--steps", 1).err
    refused = unipo("train", "--resume", "--run", "r", "--lr", 0.5)
    assert refused.status == 2
    assert f"optim.learning_rate = 0.5 (was {STARTER_DEFAULTS['optim']['learning_rate']})" in refused.err
    again = unipo("train", "--resume", "--run", "r", "--steps", 2)
    assert again.status == 0
    assert [json.loads(text)["step"] for text in Path("r/metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert "would cut it short" in unipo("train", "--resume", "--run", "r", "--steps", 1).err


def test_a_failing_reward_is_a_failed_run_with_status_1(unipo: Call, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("def score(**k):\n    return float('nan')\n")
    said = unipo("train", *TINY, "--steps", 1, "--reward", "rewards.py:score")
    assert said.status == 1
    assert "unipo: reward 'score' returned NaN" in said.err
    assert "Traceback" not in said.err


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on_and_does(unipo: Call, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "unipo.cli", "train", *TINY, "--steps", "5000", "--run", "r"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment) as process:
        metrics = tmp_path / "r" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    done = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert f"stopped after step {done}; go on with: unipo train --resume --run r" in err
    config = tmp_path / "r" / "config.yaml"
    config.write_text(config.read_text().replace("steps: 5000", f"steps: {done + 1}"))
    said = unipo("train", "--resume", "--run", "r")
    assert said.status == 0, said.err
    assert f"resuming after step {done}" in said.err
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == done + 1


@pytest.mark.parametrize(("model", "task"), [("starter", "scratchpad"), ("shapes", "shapes")])
def test_a_shipped_model_trains_on_the_task_it_was_made_for(unipo: Call, tmp_path: Path, model: str, task: str) -> None:
    pytest.importorskip("PIL")
    unipo("train", "--method", "grpo-token", "--model", model, "--steps", 1, "--run", tmp_path / "run", *TINY)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["task"] == task
