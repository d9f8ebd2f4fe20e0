"""Small pieces of Markdown, and text from outside that cannot break them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from unipo.method import Paper


def cell(text: str) -> str:
    """Text that may stand in a table: one line, bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell(c) for c in line) + " |" for line in lines)


def show(value: Any) -> str:
    """A setting as a reader writes it; a part as Name(setting=value, ...)."""
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(show(v) for v in value) or "none"
    if is_dataclass(value) and not isinstance(value, type):
        settings = ", ".join(f"{f.name}={show(getattr(value, f.name))}" for f in fields(value))
        return f"{type(value).__name__}({settings})"
    return f"{value:g}" if isinstance(value, float) else repr(value)


def paper_link(paper: Paper) -> str:
    """Title, arXiv address and code, as far as there are any."""
    parts = [f"*{paper.title}*"]
    if paper.arxiv:
        parts.append(f"[arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})")
    if paper.code:
        parts.append(f"code [{paper.code}](https://github.com/{paper.code})")
    return ", ".join(parts)


def inline(text: object) -> str:
    """Text on one line that Markdown and HTML show as it is, wherever it comes from."""
    plain = " ".join(str(text).split())
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # A bar as an entity, because a table would escape an escaped one again.
    return re.sub(r"([\\`*_{}\[\]()#!~$])", r"\\\1", plain).replace("|", "&#124;")


def fenced(text: str, language: str = "") -> str:
    """A block of code that nothing inside can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
