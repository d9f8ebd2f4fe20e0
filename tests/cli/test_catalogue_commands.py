from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import unipo as library
from unipo.axes import AXES
from unipo.cli import COMMANDS
from unipo.command.methods import FIELDS
from unipo.registry import catalogue
from unipo.training.setting import COMPOSITION

from .conftest import Said

Call = Callable[..., Said]


def test_help_names_every_command(unipo: Call) -> None:
    for arguments in ([], ["--help"]):
        said = unipo(*arguments)
        assert said.status == 0
        assert all(f"\n  {name} " in said.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_has_examples(unipo: Call, name: str) -> None:
    said = unipo(name, "--help")
    assert said.status == 0
    assert f"unipo {name} " in said.out
    assert "examples:" in said.out
    assert "--json" in said.out


def test_version(unipo: Call) -> None:
    assert unipo("--version").out == f"unipo {library.__version__}\n"


def test_an_unknown_command_gets_the_nearest(unipo: Call) -> None:
    said = unipo("trian")
    assert said.status == 2
    assert "did you mean 'train'" in said.err
    assert "Traceback" not in said.err


def test_help_loads_no_torch_and_the_catalogue_no_transformers() -> None:
    program = (
        "import sys; from unipo.cli import main; "
        "main(['--help']); assert 'torch' not in sys.modules; "
        "main(['methods']); main(['explain', 'cepo']); main(['diff', 'grpo', 'cepo']); "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_methods_lists_every_method_with_its_parts(unipo: Call) -> None:
    listed = unipo("methods", "--json").json
    assert [m["name"] for m in listed] == list(catalogue())
    for item in listed:
        assert set(item) == {"name", "aliases", "paper", "arxiv", "code", "parent", "summary", "axes", "parts"}
        assert set(item["parts"]) <= set(FIELDS)
        assert item["parts"]["source"]
        assert item["parts"]["objective"]
    dapo = next(m for m in listed if m["name"] == "dapo")
    assert (dapo["parent"], dapo["arxiv"]) == ("grpo", "2503.14476")
    assert dapo["parts"]["selection"] == ["DynamicSampling"]


def test_the_fields_of_the_catalogue_are_those_that_can_be_set() -> None:
    assert set(FIELDS) == set(COMPOSITION)


def test_methods_as_a_table_and_grouped(unipo: Call) -> None:
    rows = unipo("methods").out.splitlines()
    assert len(rows) == 1 + len(catalogue())
    grouped = unipo("methods", "--by", "selection").out
    assert "(none)" in grouped
    row = next(text for text in grouped.splitlines() if "DynamicSampling" in text)
    assert "dapo" in row
    assert "did you mean 'advantage'" in unipo("methods", "--by", "advantge").err


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("grpo", ("sampled now", "reward", "policy gradient without a value model", "response", "in the loss")),
        ("rloo", ("sampled now", "reward", "policy gradient without a value model", "response", "in the reward")),
        ("reinforce++", ("sampled now", "reward", "policy gradient without a value model", "token", "in the reward")),
        ("spo-tree", ("sampled now, and some steps before", "reward")),
        ("ppo", ("sampled now", "reward", "actor-critic", "token", "in the reward")),
        ("cepo", ("sampled now", "reward", "policy gradient without a value model", "token", "nowhere")),
        ("spo-segment", ("sampled now", "reward", "policy gradient without a value model", "segment", "in the loss")),
        ("empo", ("sampled now", "agreement among responses", "policy gradient without a value model", "response")),
        ("hpt", ("sampled now, and demonstrations", "reward and demonstrations")),
        ("dpo", ("offline: preferred and rejected responses", "comparisons", "preference likelihood, offline")),
        ("sft", ("offline: demonstrations", "demonstrations", "weighted likelihood, offline", "token", "nowhere")),
        ("async-decoupled-ppo", ("sampled by older weights", "reward")),
    ],
)
def test_a_method_has_a_place_on_every_axis(name: str, places: tuple[str, ...]) -> None:
    found = [place(catalogue()[name]) for place in AXES.values()]
    assert tuple(found[: len(places)]) == places


def test_methods_along_the_axes(unipo: Call) -> None:
    said = unipo("methods", "--by", "axis").out
    assert all(name in said for name in AXES)
    assert "actor-critic" in unipo("methods", "--by", "optimisation").out
    assert "did you mean 'optimisation'" in unipo("methods", "--by", "optimization").err


def test_one_method_in_full_shows_what_it_changed(unipo: Call) -> None:
    said = unipo("methods", "cepo")
    for text in ("2605.19436", "formula", "changes to rlsd", "credit.contrastive", "details", "doubts"):
        assert text in said.out
    full = unipo("methods", "cepo", "--json").json
    assert {"path": "credit.contrastive", "before": False, "after": True} in full["changes"]


def test_an_unknown_method_gets_the_nearest(unipo: Call) -> None:
    for arguments in (("methods", "grop"), ("explain", "grop"), ("diff", "grop", "dapo"), ("diff", "dapo", "grop")):
        said = unipo(*arguments)
        assert said.status == 2
        assert "did you mean 'grpo'" in said.err


def test_diff_is_the_list_of_changes(unipo: Call) -> None:
    changes = unipo("diff", "grpo", "dapo", "--json").json
    by_path = {c["path"]: (c["before"], c["after"]) for c in changes}
    assert by_path["objective.high"] == (0.2, 0.28)
    assert by_path["average"] == ("SequenceMean(count='nonempty')", "TokenMean()")
    assert "objective.high" in unipo("diff", "grpo", "dapo").out
    assert "same composition" in unipo("diff", "grpo", "grpo").out


def test_explain_fills_in_settings_and_denominators(unipo: Call) -> None:
    said = unipo("explain", "grpo", "--set", "objective.high=0.35", "--set", "source.group_size=5")
    assert "clip(rho_it, 0.8, 1.35)" in said.out
    assert "y_1..y_5" in said.out
    assert "sources" in said.out
    bound = unipo("explain", "dr-grpo", "--max-tokens", 123).out
    assert "123" in bound
    assert bound != unipo("explain", "dr-grpo").out


def test_explain_json_gives_each_part_with_its_source(unipo: Call) -> None:
    record = unipo("explain", "cepo", "--json").json
    assert set(record) == {"name", "formula", "parts", "needs", "defaults", "notes", "doubts", "limits"}
    parts = {p["field"]: p for p in record["parts"]}
    assert parts["objective"]["part"] == "Clipped"
    assert parts["objective"]["settings"]["high"] == 0.28
    assert all(set(p) == {"field", "part", "settings", "formula", "source"} for p in record["parts"])


def test_parts_can_be_exchanged_from_the_command_line(unipo: Call) -> None:
    said = unipo(
        "explain", "grpo", "--json", "--set", "average=SequenceSum", "--set", "regularisers=[ReferenceKL(beta=0.5)]"
    )
    parts = {p["field"]: p for p in said.json["parts"]}
    assert parts["average"]["part"] == "SequenceSum"
    assert parts["regularisers"]["settings"]["beta"] == 0.5
    for place in ("0", "SoftOverlong"):
        said = unipo("explain", "dapo", "--json", "--set", f"shaping.{place}=LengthBonus(strength=0.5)").json
        assert [(p["part"], p["settings"]["strength"]) for p in said["parts"] if p["field"] == "shaping"] == [
            ("LengthBonus", 0.5)
        ]
    without = unipo("explain", "grpo", "--json", "--set", "regularisers=()").json
    assert "regularisers" not in {p["field"] for p in without["parts"]}


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("objective.hihg=0.3", "did you mean 'high'"),
        ("objectiv.high=0.3", "did you mean 'objective'"),
        ("objective.high=wide", "objective.high must be a number, got 'wide'"),
        ("source.group_size=2.5", "source.group_size must be int, got 2.5"),
        ("average=SequenceMaen", "did you mean 'SequenceMean'"),
        ("average=Clipped", "average takes an average such as"),
        ("average=ConstantNormaliser(lenght=3)", "did you mean 'length'"),
        ("average=__import__('os').getcwd()", "cannot read"),
        ("selection.0.rounds=3", "has no selection to change"),
        ("regularisers.1.beta=0", "unknown part in"),
        ("regularisers.0=[]", "regularisers.0 takes exactly one part"),
        ("regularisers.0=Clipped", "regularisers takes a regulariser such as"),
        ("objective.high", "--set takes PATH=VALUE"),
    ],
)
def test_a_wrong_setting_says_what_is_wrong(unipo: Call, setting: str, complaint: str) -> None:
    said = unipo("explain", "grpo", "--set", setting)
    assert said.status == 2
    assert complaint in said.err
    assert "Traceback" not in said.err


def test_a_plugin_registers_a_method_of_the_users(unipo: Call, tmp_path: Path) -> None:
    (tmp_path / "shelf.py").write_text(
        "from unipo import Paper, get_method, register\n"
        "register(get_method('grpo').but(name='plugged-in-for-diff', paper=Paper('Mine'), regularisers=()))\n"
    )
    changes = unipo("diff", "grpo", "plugged-in-for-diff", "--plugin", "shelf.py", "--json").json
    assert [c["path"] for c in changes] == ["regularisers"]
    assert "is not a file" in unipo("methods", "--plugin", "nowhere.py").err
