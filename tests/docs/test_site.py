"""The documentation's web site: where links lead, and what a reader does not see. `make site` builds it whole."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("mkdocs")

from website import hooks


def rendered(text: str, address: str) -> str:
    page = SimpleNamespace(file=SimpleNamespace(src_uri=address))
    return hooks.on_page_markdown(text, page, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("page", "target", "leads_to"),
    [
        ("index.md", "docs/view.md", "view.md"),
        ("index.md", "CONTRIBUTING.md", "contributing.md"),
        ("index.md", "docs/methods/cepo.md", "methods/cepo.md"),
        ("index.md", "docs/images/view-tokens.png", "images/view-tokens.png"),
        ("index.md", "LICENSE", "source/LICENSE.md"),
        ("view.md", "../unipo/training/health.py", "source/unipo/training/health.py.md"),
        ("view.md", "metrics.md", "metrics.md"),
        ("methods/cepo.md", "../../reproductions/results/cepo.png", "../source/reproductions/results/cepo.png"),
        ("methods/cepo.md", "../../README.md#the-methods", "../index.md#the-methods"),
        ("benchmarks.md", "../CHANGELOG.md", "changelog.md"),
        ("view.md", "https://github.com/leeoniya/uPlot", "https://github.com/leeoniya/uPlot"),
    ],
)
def test_a_link_of_the_repository_leads_to_its_page_of_the_site(page: str, target: str, leads_to: str) -> None:
    assert rendered(f"see [this]({target}).", page) == f"see [this]({leads_to})."


def test_what_tests_read_off_a_fence_is_not_shown_and_a_file_name_is() -> None:
    text = '```bash short="--steps 2"\nunipo train\n```\n\n```python file=rewards.py\nx = 1\n```\n\n```text\nplain\n```'
    assert rendered(text, "data.md") == (
        '```bash\nunipo train\n```\n\n```python title="rewards.py"\nx = 1\n```\n\n```text\nplain\n```'
    )


def test_a_listing_is_shown_as_it_is() -> None:
    listing = '# f.py\n\n````python\nx = "[a](README.md)"\n````\n'
    assert rendered(listing, "source/f.py.md") == listing
