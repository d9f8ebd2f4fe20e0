from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unipo.compare.plan import Arm, Budget, Plan, check, default_folder, settle, slug
from unipo.compare.spelling import parse_arm, parse_budget, plain_train
from unipo.errors import ConfigError


def plan(*arms: str, **changes: Any) -> Plan:
    base = Plan(tuple(parse_arm(a) for a in arms), {"scratchpad": "scratchpad"}, (0, 1), Budget("tokens", 1000))
    return replace(base, **changes)


# -- spellings -----------------------------------------------------------------------------------
def test_an_arm_is_a_method_with_settings() -> None:
    assert parse_arm("dapo") == Arm("dapo", "dapo")
    text = "dapo[objective.high=0.3,average=SequenceMean(),lr=1e-4,optim.beta2=0.9,selection=[]]"
    arm = parse_arm(text)
    assert (arm.name, arm.method) == (text, "dapo")
    assert arm.set == {"objective.high": 0.3, "average": "SequenceMean()", "selection": []}
    assert arm.optim == {"learning_rate": 1e-4, "beta2": 0.9}
    assert arm.resolved().objective.high == 0.3  # type: ignore[attr-defined]
    assert arm.resolved().selection == ()


def test_commas_inside_brackets_belong_to_the_value() -> None:
    arm = parse_arm("grpo[objective=Clipped(low=0.1,high=0.3),regularisers=[ReferenceKL(beta=0.1,estimator=k2)]]")
    assert set(arm.set) == {"objective", "regularisers"}
    assert arm.set["objective"] == "Clipped(low=0.1,high=0.3)"


@pytest.mark.parametrize("text", ["", "[x=1]", "dapo[x=1", "dapo[x]", "dapo[=1]"])
def test_a_misspelt_arm_says_how_one_is_written(text: str) -> None:
    with pytest.raises(ConfigError, match="written"):
        parse_arm(text)


def test_a_budget_in_either_order() -> None:
    assert parse_budget(["100_000", "tokens"]) == parse_budget(["tokens", "1e5"]) == Budget("tokens", 100_000)
    assert parse_budget(["30.5", "seconds"]) == Budget("seconds", 30.5)
    assert parse_budget([100_000, "tokens"]) == parse_budget("100000 tokens") == Budget("tokens", 100_000)
    for wrong in (100_000, None, {"tokens": 5}, ["tokens"], ["60"], ["60", "minutes"], ["tokens", "steps"]):
        with pytest.raises(ConfigError, match="a budget is written"):
            parse_budget(wrong)
    for amount, unit in (("0", "steps"), ("-1", "tokens"), ("1.5", "steps")):
        with pytest.raises(ConfigError, match="budget"):
            parse_budget([amount, unit])


def test_a_name_becomes_a_file_name_that_no_other_has() -> None:
    assert slug("dr-grpo") == "dr-grpo"
    assert slug("reinforce++") != slug("reinforce")
    assert slug("dapo[a=1]") != slug("dapo[a=2]")
    assert not set('/[]="? ') & set(slug('scratchpad?kinds=["a/b"]'))


# -- equal budgets --------------------------------------------------------------------------------
def test_every_method_samples_the_same_number_of_responses_per_step() -> None:
    p = plan("grpo", "dapo", "rloo", "reinforce")
    for run in p.runs:
        config = p.config(run, Path("x"))
        assert config.prompts * run.arm.resolved().source.group == 64
        assert config.budget.tokens == 1000
        assert config.steps * 64 > 1000  # the tokens end the run, not the steps


def test_all_runs_share_everything_but_method_and_seed() -> None:
    p = plan("grpo", "cepo", train={"optim": {"beta1": 0.8}})
    shared = [
        replace(p.config(r, Path("x")), method="", run="", seed=0, prompts=1, set={})
        for r in p.runs
        if r.arm.name in ("grpo", "cepo")
    ]
    assert all(c == shared[0] for c in shared)
    assert shared[0].optim.beta1 == 0.8
    assert shared[0].optim.learning_rate == 2e-4  # the shipped model's, not each paper's
    assert [r.seed for r in p.runs] == [0, 0, 1, 1]


def test_an_arms_own_learning_rate_lies_above_the_common_one() -> None:
    p = plan("grpo", "grpo[lr=1e-5]", train={"optim": {"learning_rate": 3e-4}})
    assert [p.config(r, Path("x")).optim.learning_rate for r in p.runs[:2]] == [3e-4, 1e-5]


def test_a_group_that_does_not_fit_the_step_is_named() -> None:
    with pytest.raises(ConfigError, match=r"60 responses per step cannot be groups of 8, which grpo samples"):
        check(plan("grpo", responses=60))


@pytest.mark.parametrize(
    ("arms", "changes", "complaint"),
    [
        (("grop",), {}, "did you mean 'grpo'"),
        (("grpo", "grpo"), {}, "arm given twice: grpo"),
        (("grpo",), {"seeds": (1, 1)}, "seed given twice: 1"),
        (("grpo",), {"seeds": ()}, "no seed"),
        (("grpo",), {"tasks": {}}, "no task"),
        (("grpo[objective.hihg=1]",), {}, "did you mean 'high'"),
        (("grpo", "dpo"), {"budget": Budget("steps", 3)}, "different measures"),
        (("dpo",), {}, "samples no tokens"),
        (("grpo",), {"train": {"optim": {"schedule": "cosine"}}}, "use a constant one"),
    ],
)
def test_what_cannot_be_compared_is_said_first(arms: tuple[str, ...], changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check(plan(*arms, **changes))


@pytest.mark.parametrize("key", ["method", "steps", "seed", "prompts", "run", "budget.tokens"])
def test_what_the_comparison_decides_cannot_be_set(key: str) -> None:
    value: Any = "x" if key in ("method", "run") else 3
    with pytest.raises(ConfigError, match="decided by the comparison"):
        plain_train({key: value})


@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [
        ("data.task", "countdown", "--task"),
        ("eval.points", 9, "--points"),
        ("eval.before", False, "before its first step"),
        ("eval.after", False, "after its last step"),
    ],
)
def test_settings_that_would_be_overwritten_are_refused(key: str, value: Any, instead: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is decided by the comparison.*{instead}"):
        plain_train({key: value})


def test_settings_of_all_runs_are_checked_like_those_of_a_run() -> None:
    assert plain_train({"optim.beta2": 0.9, "eval": {"prompts": 3}}) == {
        "optim": {"beta2": 0.9},
        "eval": {"prompts": 3},
    }
    with pytest.raises(ConfigError, match=r"did you mean 'optim\.beta2'"):
        plain_train({"optim.beta_2": 0.9})


# -- going on -------------------------------------------------------------------------------------
def test_a_directory_takes_more_arms_tasks_and_seeds_but_no_other_settings(tmp_path: Path) -> None:
    first = plan("grpo")
    settle(first, tmp_path)
    settle(first, tmp_path)
    settle(replace(first, arms=(*first.arms, parse_arm("dapo")), seeds=(0, 1, 2)), tmp_path)
    settle(first, tmp_path)  # the smaller one is part of it
    for changes, named in (
        ({"budget": Budget("tokens", 2000)}, "budget.amount is 2000, was 1000"),
        ({"responses": 32}, "responses is 32, was 64"),
        ({"train": {"optim": {"beta2": 0.9}}}, "train"),
        ({"arms": (Arm("grpo", "grpo", {"objective.high": 0.3}),)}, "arms.grpo"),
        ({"tasks": {"scratchpad": "countdown"}}, "tasks.scratchpad"),
    ):
        with pytest.raises(ConfigError) as caught:
            settle(replace(first, **changes), tmp_path)  # type: ignore[arg-type]
        assert named in str(caught.value)


def test_a_changed_plugin_is_a_changed_setting(tmp_path: Path) -> None:
    plugin = tmp_path / "mine_for_settle.py"
    plugin.write_text("X = 1\n")
    mine = plan("grpo", train={"plugin": [str(plugin)]})
    settle(mine, tmp_path / "out")
    settle(mine, tmp_path / "out")
    plugin.write_text("X = 2\n")
    with pytest.raises(ConfigError, match="mine_for_settle"):
        settle(mine, tmp_path / "out")


def test_a_method_that_is_composed_otherwise_now_is_a_changed_setting(tmp_path: Path) -> None:
    settle(plan("grpo"), tmp_path)
    stored = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(stored.replace("0.04", "0.02"))
    with pytest.raises(ConfigError, match=r"arms\.grpo\.formula"):
        settle(plan("grpo"), tmp_path)


def test_the_same_settings_lead_to_the_same_directory() -> None:
    assert default_folder(plan("grpo")) == default_folder(plan("grpo", seeds=(0, 1, 2)))
    assert default_folder(plan("grpo")) != default_folder(plan("grpo", responses=32))
