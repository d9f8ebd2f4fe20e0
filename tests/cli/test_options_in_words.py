"""An option that a text of the library names is one that some command has."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import unipo
from unipo.cli import COMMANDS
from unipo.command import train
from unipo.command.flags import option_names
from unipo.training.config import TrainConfig

ROOT = Path(unipo.__file__).parent
NAMED = re.compile(r"(?<![\w-])--[a-z][\w.-]*")
# Options of other programs (git, torchrun, tensorboard, mlflow) and of `python -m unipo.docs`, and what every command has.
FOREIGN = {
    "--always",
    "--dirty",
    "--abbrev",
    "--nproc-per-node",
    "--logdir",
    "--backend-store-uri",
    "--root",
    "--check",
    "--debug",
    "--help",
    "--version",
}


# Files beside a command's own that speak to those who call it, and commands that read data through unipo/tasks.
BESIDE = {"eval": ("problems", "harness")}
READERS = ("train", "eval", "generate")


def of(command: str) -> set[str]:
    """The options of a command, its switches also negated."""
    module = importlib.import_module(COMMANDS[command][0].partition(":")[0])
    kind = train.options(TrainConfig()) if command == "train" else getattr(module, "options", lambda: module.Options)()
    names = set(option_names(kind))
    return names | {f"--{section}{dot}no-{last}" for section, dot, last in (n[2:].rpartition(".") for n in names)}


def texts(file: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def unknown(files: Iterable[Path], known: set[str]) -> list[str]:
    """The options that texts of these files name and that are not known."""
    wrong = []
    for file in files:
        for number, text in texts(file):
            for name in (m.rstrip("-.") for m in NAMED.findall(text)):
                section = any(k.startswith(f"{name}.") for k in known)  # whole, or its name is filled in
                if name not in known | FOREIGN and not section:
                    wrong.append(f"{file.relative_to(ROOT)}:{number}: {name}")
    return wrong


def test_every_option_that_a_text_names_exists() -> None:
    known = {name for command in COMMANDS for name in of(command)}
    assert unknown(sorted(ROOT.rglob("*.py")), known | {"--no"}) == []  # with which the parser begins a negation


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_options_of_its_own(command: str) -> None:
    own = COMMANDS[command][0].partition(":")[0].rpartition(".")[2]
    files = [ROOT / "command" / f"{name}.py" for name in (own, *BESIDE.get(command, ()))]
    assert unknown(files, of(command)) == []


@pytest.mark.parametrize("command", READERS)
def test_what_is_said_of_data_can_be_passed_to_every_command_that_reads_it(command: str) -> None:
    assert unknown(sorted((ROOT / "tasks").rglob("*.py")), of(command)) == []
