"""What is public says what it is."""

from __future__ import annotations

import inspect
import pkgutil
import sys
from pathlib import Path

import pytest

import unipo
import unipo.methods
from unipo.registry import catalogue
from website.reference import modules, tree, undocumented

CATALOGUE = [m.name for m in pkgutil.iter_modules(unipo.methods.__path__, "unipo.methods.")]


@pytest.mark.parametrize("name", unipo.__all__)
def test_every_name_of_the_library_exists_and_is_documented(name: str) -> None:
    value = getattr(unipo, name)
    if name != "__version__":
        assert (inspect.getdoc(value) or "").strip(), f"unipo.{name} has no docstring"


@pytest.mark.parametrize("name", [*modules(), *CATALOGUE, "unipo.docs"])
def test_every_public_class_function_and_method_has_a_docstring(name: str) -> None:
    if name == "unipo.rewards.maths_grading":
        pytest.importorskip("math_verify")  # runs in workers only, and imports its extra at once
    assert undocumented(name) == []


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("x = 1", ["bare"]),
        ("'''Said.'''\ndef f(): ...", ["bare.f"]),
        ("'''Said.'''\nclass C:\n    '''Said.'''\n    def f(self): ...", ["bare.C.f"]),
        ("'''Said.'''\nclass C:\n    '''Said.'''\n    @property\n    def f(self): ...", ["bare.C.f"]),
        ("'''Said.'''\nfrom dataclasses import dataclass\n@dataclass\nclass C:\n    x: int = 0", ["bare.C"]),
        ("'''Said.'''\ndef _f(): ...\nclass _C: ...", []),
        (
            "'''Said.'''\nfrom json import JSONEncoder\nclass C(JSONEncoder):\n    '''Said.'''\n    def encode(self, o): ...",
            [],
        ),
    ],
)
def test_what_has_no_docstring_is_found_unless_it_inherits_one(
    source: str, missing: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bare", raising=False)
    assert undocumented("bare") == missing


def test_the_reference_lists_every_module_once() -> None:
    listed = [str(page) for room in tree() for pages in room.values() for entry in pages for page in entry.values()]
    assert sorted(listed) == sorted(f"python/{name}.md" for name in modules())
    assert not [n for n in modules() if n.startswith(("unipo.command", "unipo.view"))]


def test_every_method_names_its_paper_and_says_what_it_is() -> None:
    for method in catalogue().values():
        assert method.paper.title, method.name
        assert method.summary, method.name


def test_every_part_of_the_catalogue_has_a_formula() -> None:
    for method in catalogue().values():
        for _, part in method.parts:
            assert part.formula().strip(), f"{method.name}: {type(part).__name__}"
