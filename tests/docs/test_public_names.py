"""What is public says what it is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import unipo
import unipo.methods
import unipo.parts
from unipo.registry import catalogue

MODULES = (
    *("unipo.batch", "unipo.layout", "unipo.method", "unipo.registry", "unipo.columns", "unipo.signals", "unipo.judge"),
    *("unipo.check", "unipo.padded", "unipo.errors", "unipo.api", "unipo.docs"),
    *(m.name for m in pkgutil.iter_modules(unipo.parts.__path__, "unipo.parts.")),
    *(m.name for m in pkgutil.iter_modules(unipo.methods.__path__, "unipo.methods.")),
)


def public(module: ModuleType) -> list[str]:
    """Names of the public classes and functions that a module defines."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


@pytest.mark.parametrize("name", unipo.__all__)
def test_every_name_of_the_library_exists_and_is_documented(name: str) -> None:
    value = getattr(unipo, name)
    if name != "__version__":
        assert (inspect.getdoc(value) or "").strip(), f"unipo.{name} has no docstring"


@pytest.mark.parametrize("name", MODULES)
def test_every_public_class_and_function_has_a_docstring_of_its_own(name: str) -> None:
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip(), f"{name} has no docstring"
    bare = [n for n in public(module) if not (vars(module)[n].__doc__ or "").strip()]
    # A dataclass without a docstring is given its signature as one.
    bare += [n for n in public(module) if (vars(module)[n].__doc__ or "").startswith(f"{n}(")]
    assert bare == [], f"{name}: no docstring on {', '.join(bare)}"


def test_every_method_names_its_paper_and_says_what_it_is() -> None:
    for method in catalogue().values():
        assert method.paper.title, method.name
        assert method.summary, method.name


def test_every_part_of_the_catalogue_has_a_formula() -> None:
    for method in catalogue().values():
        for _, part in method.parts:
            assert part.formula().strip(), f"{method.name}: {type(part).__name__}"
