"""What MkDocs does not do by itself: pages from outside docs/, links to source files, and a check of docstrings."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))  # MkDocs loads this file by its path

import reference

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ASSETS = (HERE / "site.css", HERE / "vendor/iframe-worker.js")
# Pages of the repository that lie outside docs/: where in the site each appears.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
SOURCE = "source/"  # where in the site files of the repository are shown
PICTURES = (".png", ".svg")
_LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?P<after>\))")
_FENCE = re.compile(r"^```(?P<language>[a-z]+) (?P<words>[^\n`]+)$", re.MULTILINE)
_FILE = re.compile(r"\bfile=(\S+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Stop where something public is undocumented; fill in the navigation."""
    bare = [symbol for name in reference.modules() for symbol in reference.undocumented(name)]
    if bare:
        raise PluginError(f"{len(bare)} public symbols have no docstring: {', '.join(bare)}")
    methods = sorted(p.name for p in (ROOT / "docs/methods").glob("*.md") if p.name != "README.md")
    pages = [{p.removesuffix(".md"): f"methods/{p}"} for p in methods]
    _fill(config.nav, "Methods", ["methods/README.md", *pages])
    _fill(config.nav, "Python", reference.tree())
    return config


def _fill(nav: Any, title: str, pages: list[Any]) -> None:
    for entry in nav:
        for name, below in entry.items() if isinstance(entry, dict) else ():
            if name == title:
                entry[name] = pages
            elif isinstance(below, list):
                _fill(below, title, pages)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/, one for each module, and one for each source file that a page links to."""
    for path, address in OUTSIDE.items():
        files.append(File.generated(config, address, content=(ROOT / path).read_text(encoding="utf-8")))
    for asset in ASSETS:
        files.append(File.generated(config, f"assets/{asset.name}", abs_src_path=str(asset)))
    for name in reference.modules():
        files.append(File.generated(config, reference.address(name), content=reference.page(name)))
    linked = {
        target
        for file in files.documentation_pages()
        for match in _LINK.finditer(file.content_string)
        if (target := _in_repository(file.src_uri, match["target"])) and _shown(target).startswith(SOURCE)
    }
    for target in sorted(linked):
        picture = Path(target).suffix in PICTURES
        content = {"abs_src_path": str(ROOT / target)} if picture else {"content": _listing(target)}
        files.append(File.generated(config, _shown(target), **content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links lead to where the site has what they mean; what tests read off a fence is left out."""
    here = page.file.src_uri

    def link(match: re.Match[str]) -> str:
        target = _in_repository(here, match["target"])
        if target is None:
            return match[0]
        address = posixpath.relpath(_shown(target), posixpath.dirname(here) or ".")
        return f"{match['before']}{address}{match['anchor'] or ''}{match['after']}"

    def fence(match: re.Match[str]) -> str:
        named = _FILE.search(match["words"])
        return f"```{match['language']}" + (f' title="{named[1]}"' if named else "")

    return _FENCE.sub(fence, markdown if here.startswith(SOURCE) else _LINK.sub(link, markdown))


def _in_repository(page: str, target: str) -> str | None:
    """The path in the repository that a link on a page of the site means; None for links that leave it."""
    if re.match(r"[a-z]+:", target):
        return None
    home = next((path for path, address in OUTSIDE.items() if address == page), f"docs/{page}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(home), target))
    return path if (ROOT / path).is_file() else None


def _shown(path: str) -> str:
    """Where in the site a file of the repository is to be seen."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{SOURCE}{path}" if Path(path).suffix in PICTURES else f"{SOURCE}{path}.md"


def _listing(path: str) -> str:
    language = {".py": "python", ".json": "json", ".yaml": "yaml", ".cff": "yaml"}.get(Path(path).suffix, "text")
    text = (ROOT / path).read_text(encoding="utf-8")
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n````{language}\n{text}\n````\n"
