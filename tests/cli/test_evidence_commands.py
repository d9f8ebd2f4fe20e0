from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import unipo as library
from unipo.command.compare import Options, read
from unipo.command.flags import parse
from unipo.compare.plan import Budget
from unipo.errors import ConfigError
from unipo.registry import catalogue
from unipo.reproduce.shelf import shelf

from .conftest import Said

Call = Callable[..., Said]

TINY = (
    *("--budget", 2, "steps", "--responses", 8, "--points", 0, "--max-tokens", 10, "--with", "eval.prompts=4"),
    *("--jobs", 1),
)


def asked(*arguments: object) -> object:
    return read(parse(Options, [str(a) for a in arguments], "unipo compare", "x"))


def test_options_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "arms: [grpo, dapo]\ntasks: {sums: scratchpad}\nbudget: 9 steps\ntrain: {lr: 1e-5, optim: {beta2: 0.9}}\n"
    )
    plan = asked("--config", file, "--seeds", 2).plan  # type: ignore[attr-defined]
    assert [a.name for a in plan.arms] == ["grpo", "dapo"]
    assert (plan.tasks, plan.seeds, plan.budget) == ({"sums": "scratchpad"}, (0, 1), Budget("steps", 9))
    assert plan.train == {"optim": {"learning_rate": 1e-5, "beta2": 0.9}}
    plan = asked("cepo", "--config", file, "--task", "countdown", "--budget", "tokens", 50, "--lr", 1e-3).plan  # type: ignore[attr-defined]
    assert [a.name for a in plan.arms] == ["cepo"]
    assert (plan.tasks, plan.budget) == ({"countdown": "countdown"}, Budget("tokens", 50))
    assert plan.train["optim"] == {"learning_rate": 1e-3, "beta2": 0.9}


def test_without_settings_the_shipped_model_is_compared_on_its_task() -> None:
    plan = asked("grpo").plan  # type: ignore[attr-defined]
    assert (plan.tasks, len(plan.seeds), plan.budget) == ({"scratchpad": "scratchpad"}, 5, Budget("tokens", 100_000))


def test_a_learning_rate_of_nothing_is_one() -> None:
    assert asked("grpo", "--lr", 0).plan.train == {"optim": {"learning_rate": 0.0}}  # type: ignore[attr-defined]


def test_a_lone_text_of_the_file_is_a_list_of_one(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text("")
    file.write_text(f"arms: grpo\nall: true\nwithout: ada-grpo\ntrain: {{plugin: {tmp_path}/a.py}}\n")
    plan = asked("--config", file, "--plugin", tmp_path / "b.py").plan  # type: ignore[attr-defined]
    assert plan.train["plugin"] == [f"{tmp_path}/a.py", f"{tmp_path}/b.py"]
    assert {a.name for a in plan.arms} == set(sampling()) - {"ada-grpo"}
    file.write_text("all: true\nwithout: {grpo: 1}\n")
    with pytest.raises(ConfigError, match="without must be a list"):
        asked("--config", file)


def sampling() -> list[str]:
    """Asked for late: other tests of this process register methods."""
    return [m.name for m in catalogue().values() if m.online and "step_ids" not in m.source.adds]


def test_all_is_every_method_that_samples_tokens() -> None:
    plan = asked("--all").plan  # type: ignore[attr-defined]
    assert [a.name for a in plan.arms] == sampling()
    assert "grpo" in sampling()
    assert "cot2-grpo" not in sampling()  # the model of the others cannot be compared under mixtures of tokens


def test_the_standing_comparison_is_one_command() -> None:
    wanted = asked("--config", shelf() / "standing.yaml")
    assert len(wanted.plan.tasks) == 4  # type: ignore[attr-defined]
    assert wanted.page == "docs/comparison.md"  # type: ignore[attr-defined]
    assert {a.method for a in wanted.plan.arms} == set(sampling()) - {"ada-grpo"}  # type: ignore[attr-defined]
    assert "ada-grpo" in wanted.note  # type: ignore[attr-defined]
    for run in wanted.plan.runs:  # type: ignore[attr-defined]
        wanted.plan.config(run, Path("runs"))  # type: ignore[attr-defined]


def test_a_method_named_beside_all_keeps_its_settings() -> None:
    plan = asked("papo[source.group_size=4]", "--all").plan  # type: ignore[attr-defined]
    assert [a.name for a in plan.arms if a.method == "papo"] == ["papo[source.group_size=4]"]


def test_a_method_may_be_left_out_of_all() -> None:
    plan = asked("--all", "--without", "ppo", "--without", "dads").plan  # type: ignore[attr-defined]
    assert set(sampling()) - {a.name for a in plan.arms} == {"ppo", "dads-rulereasoner"}
    with pytest.raises(ConfigError, match="did you mean 'ppo'"):
        asked("--all", "--without", "pppo")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "what is to be compared?"),
        (("grop",), "did you mean 'grpo'"),
        (("grpo", "--budget", "5", "minutes"), "a budget is written"),
        (("grpo", "--with", "optim.beta_2=1"), "did you mean 'optim.beta2'"),
        (("grpo", "--with", "seed=1"), "decided by the comparison"),
        (("grpo", "--with", "task=countdown"), "data.task is decided by the comparison"),
        (("grpo", "--task", "countdwn", "--no-figure"), "did you mean 'countdown'"),
        (("grpo", "--task", "countdown", "--data", "x.jsonl"), "tasks or data, not both"),
        (("grpo", "--seeds", "-1"), "--seeds must be a whole number"),
        (("grpo", "--seeds", "0"), "--seeds must be a whole number of at least 1, got 0"),
        (("grpo", "--responses", "0"), "--responses must be a whole number of at least 1, got 0"),
        (("grpo", "--points", "-1"), "--points must be a whole number of at least 0, got -1"),
        (("grpo", "--sedes", "1"), "did you mean --seeds"),
        (("grpo", "--budget", "inf", "tokens"), "a budget is a positive number of tokens, steps or seconds; got inf"),
        (("grpo", "--budget", "inf", "seconds"), "a budget is a positive number of tokens, steps or seconds; got inf"),
        (("grpo", *TINY, "--no-figure", "--out", "/dev/null/x"), "cannot write into /dev/null/x: Not a directory"),
    ],
)
def test_what_cannot_work_is_status_2(unipo: Call, arguments: tuple[str, ...], complaint: str) -> None:
    said = unipo("compare", *arguments)
    assert said.status == 2
    assert complaint in said.err
    assert "Traceback" not in said.err


def test_an_unknown_key_of_the_file_is_named(unipo: Call, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"arm": ["grpo"]}))
    assert "did you mean 'c.yaml: arms'" in unipo("compare", "--config", "c.yaml").err


@pytest.mark.parametrize("budget", [100_000, [100_000, "tockens"], None])
def test_a_budget_of_the_file_that_is_none_is_named(unipo: Call, tmp_path: Path, budget: object) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"arms": ["grpo"], "budget": budget}))
    said = unipo("compare", "--config", "c.yaml")
    assert (said.status, "a budget is written e.g. 100000 tokens" in said.err) == (2, True)


@pytest.mark.slow
def test_compare_prints_a_table_and_the_same_command_repeats_nothing(unipo: Call, tmp_path: Path) -> None:
    command = ("compare", "grpo", "grpo[lr=1e-5]", "--seeds", 2, *TINY, "--no-figure", "--page", "p/page.md")
    said = unipo(*command)
    assert said.status == 0, said.err
    for text in ("scratchpad (before:", "chance of improvement", "cost of a run", "grpo[lr=1e-5]"):
        assert text in said.out
    assert (tmp_path / "p" / "page.md").read_text().startswith("# The methods side by side")
    again = unipo(*command, "--json")
    assert "4 of 4 runs are finished already" in again.err
    assert set(again.json["results"]) == {"grpo", "grpo[lr=1e-5]"}
    assert Path(again.json["out"]).is_dir()
    changed = unipo(*command, "--out", again.json["out"], "--lr", 1e-3)
    assert changed.status == 2
    assert "train.optim.learning_rate is 0.001, was None" in changed.err


def test_without_matplotlib_the_extra_is_named(unipo: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for command in (("compare", "grpo", *TINY), ("reproduce", "cepo")):
        said = unipo(*command)
        assert said.status == 2
        assert "pip install 'unipo[plots]'" in said.err
    assert not Path("runs").exists()


def test_the_list_of_reproductions(unipo: Call) -> None:
    rows = unipo("reproduce", "--list", "--json").json
    assert {"slug", "verdict", "date", "seeds"} <= set(rows[0])
    assert "cepo" in {r["slug"] for r in rows}
    assert "cepo" in unipo("reproduce", "--list").out


@pytest.mark.slow
def test_a_quick_reproduction_says_that_it_means_nothing_and_keeps_nothing(unipo: Call, tmp_path: Path) -> None:
    before = sorted((shelf() / "results").glob("*"))
    said = unipo("reproduce", "rloo", "--quick")
    assert said.status == 0, said.err
    assert "these numbers mean nothing" in said.out
    assert "verdict:" not in said.out
    assert sorted((shelf() / "results").glob("*")) == before
    assert list(tmp_path.iterdir()) == []


def test_a_reproduction_of_the_users_is_kept_beside_it(unipo: Call, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "my_claim.py").write_text(
        "from unipo.reproduce import Reproduction\n"
        "REPRODUCTION = Reproduction(method='grpo', claim='It is better.', arms={'a': 'grpo', 'b': 'reinforce'},\n"
        "    budget='1 steps', seeds=5, responses=8, points=0,\n"
        "    train={'sampling': {'max_tokens': 8}, 'eval': {'prompts': 2}})\n"
    )
    said = unipo("reproduce", "my_claim.py", "--jobs", 1)
    assert said.status == 0, said.err
    assert "verdict: not shown at this scale (5 seeds)" in said.out
    record = json.loads((tmp_path / "results" / "my_claim.json").read_text())
    assert record["verdict"] == "not shown at this scale"
    assert (tmp_path / "results" / "my_claim.png").read_bytes().startswith(b"\x89PNG")
    from unipo.docs import method_page

    page = method_page(catalogue()["grpo"], catalogue(), [record])
    assert "Verdict: **not shown at this scale**" in page
    assert "of the code" not in page
    assert "1 steps per run, runs of 2 states of the code)" in method_page(
        catalogue()["grpo"], catalogue(), [{**record, "code": ["", "a1"]}]
    )
    assert "(../../reproductions/results/my_claim.png)" in page
    assert "It is better." not in method_page(catalogue()["dapo"], catalogue(), [record])


def test_fewer_than_five_seeds_are_not_kept(unipo: Call, tmp_path: Path) -> None:
    (tmp_path / "few_seeds.py").write_text(
        "from unipo.reproduce import Reproduction\n"
        "REPRODUCTION = Reproduction(method='grpo', claim='x', arms={'a': 'grpo', 'b': 'reinforce'}, seeds=4)\n"
    )
    pytest.importorskip("matplotlib")
    assert "needs five or more" in unipo("reproduce", "few_seeds.py").err


def test_unknown_reproductions_get_the_nearest(unipo: Call) -> None:
    assert "did you mean 'cispo'" in unipo("reproduce", "cipso").err
    assert "is not a file" in unipo("reproduce", "nowhere.py").err
    assert "--list shows all" in unipo("reproduce").err


@pytest.mark.slow
def test_an_interrupted_comparison_ends_with_130(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, unipo.compare.run as r; from unipo.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "def report(*a): os.kill(os.getpid(), signal.SIGINT)\n"
        "r._Clock.tick = lambda self: report() or ''\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", script, "compare", "grpo", "--seeds", "2", *map(str, TINY), "--no-figure"]
    root = str(Path(library.__file__).parents[1])
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root})
    assert done.returncode == 130, done.stderr
    assert len(list(tmp_path.rglob("outcome.json"))) == 1
