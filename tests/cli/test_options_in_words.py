"""An option that a text of the library names is one that some command has."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import unipo
from unipo.cli import COMMANDS
from unipo.command import evaluate, push, train
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


def options() -> set[str]:
    made = [train.options(TrainConfig()), evaluate.options(), push.options()]
    modules = [importlib.import_module(place.partition(":")[0]) for place, _ in COMMANDS.values()]
    made += [m.Options for m in modules if hasattr(m, "Options")]
    names = {name for kind in made for name in option_names(kind)}
    return names | {f"--{section}{dot}no-{last}" for section, dot, last in (n[2:].rpartition(".") for n in names)}


def texts(file: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_every_option_that_a_text_names_exists() -> None:
    known = options() | {"--no"}  # with which the parser itself begins the negation of a switch
    wrong = []
    for file in sorted(ROOT.rglob("*.py")):
        for number, text in texts(file):
            for name in (m.rstrip("-") for m in NAMED.findall(text)):
                section = any(k.startswith(f"{name.rstrip('.')}.") for k in known)  # whole, or its name is filled in
                if name.rstrip(".") not in known | FOREIGN and not section:
                    wrong.append(f"{file.relative_to(ROOT)}:{number}: {name}")
    assert wrong == []
