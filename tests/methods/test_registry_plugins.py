"""The catalogue by name, and a user's own file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from unipo import registry
from unipo.errors import ConfigError
from unipo.method import diff
from unipo.registry import catalogue, get_method, load_plugin, register

PLUGIN = '''
from dataclasses import dataclass

from torch import Tensor

from unipo.batch import Batch
from unipo.method import Paper
from unipo.parts.advantage import RewardAdvantage
from unipo.registry import get_method, register


@dataclass(frozen=True)
class Signs(RewardAdvantage):
    """Only the sign of the centred reward."""

    source = "this file"

    def __call__(self, batch: Batch) -> Tensor:
        layout = batch.layout
        return (batch.reward - layout.to_sequences(layout.group_mean(batch.reward))).sign()

    def formula(self) -> str:
        return "A_i = sign(R_i - mean_g(R))"


register(get_method("grpo").but(name="sign-grpo", paper=Paper("mine"), summary="Signs.", advantage=Signs()))
'''


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    catalogue()
    before = dict(registry._METHODS)
    yield
    registry._METHODS.clear()
    registry._METHODS.update(before)


def test_a_plugin_file_adds_a_method(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    load_plugin(file)
    mine = get_method("sign-grpo")
    assert mine.parent == "grpo"
    assert [c.path for c in diff(get_method("grpo"), mine)] == ["advantage"]
    assert "A_i = sign(R_i - mean_g(R))" in mine.explain()


def test_a_missing_or_odd_plugin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.py' is not a file"):
        load_plugin(tmp_path / "nothing.py")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"its name must end in \.py"):
        load_plugin(tmp_path / "notes.txt")


def test_a_plugin_that_fails_fails_loudly_and_leaves_no_module(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("raise RuntimeError('no')")
    with pytest.raises(RuntimeError, match="no"):
        load_plugin(file)
    assert "unipo_plugin_broken" not in sys.modules


def test_names_and_aliases_are_unique() -> None:
    grpo = get_method("grpo")
    with pytest.raises(ConfigError, match="a method called 'dapo' exists already"):
        register(grpo.but(name="dapo"))
    with pytest.raises(ConfigError, match="a method called 'dr_grpo' exists already"):
        register(grpo.but(name="another", aliases=("dr_grpo",)))
    assert register(grpo) is grpo


def test_a_parent_must_be_known() -> None:
    with pytest.raises(ConfigError, match="unknown parent of 'child', 'grpoo'; did you mean 'grpo'"):
        register(get_method("grpo").but(name="child", parent="grpoo"))


def test_aliases_find_their_method_and_unknown_names_their_nearest() -> None:
    assert get_method("dr_grpo") is get_method("dr-grpo")
    assert get_method("reinforce-plus-plus") is get_method("reinforce++")
    with pytest.raises(ConfigError, match="unknown method 'gropo'; did you mean 'grpo'"):
        get_method("gropo")


def test_the_catalogue_is_a_copy() -> None:
    catalogue().clear()
    assert "grpo" in catalogue()
