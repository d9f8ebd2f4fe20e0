"""The fenced blocks of a Markdown page, and what their info strings ask for.

    ```bash                      run it
    ```bash short="--steps 2"    run it with these flags added to every `unipo train`, so that it ends soon
    ```bash norun="why"          do not run it (the reason is listed by a test)
    ```python                    run it by itself
    ```python file=rewards.py    write it down under this name (any language)
    ```text output               what the block before prints, to the letter
    ```text, ```                  shown, not checked

The blocks of one page run in order, in one directory that begins empty.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNNABLE = ("bash", "python")
SHOWN = ("text", "")
WORDS = ("file", "short", "norun", "output")
_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block. where: page and line of its fence.  asks: the words after the language."""

    where: str
    language: str
    body: str
    asks: dict[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        return self.language in RUNNABLE and "file" not in self.asks and "norun" not in self.asks


def pages() -> list[Path]:
    """Every page written for readers."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """All blocks of a page, in order. Raises ValueError for an info string that means nothing here."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        where = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
        language, *words = shlex.split(match["info"]) or [""]
        asks = dict(word.partition("=")[::2] for word in words)
        unknown = set(asks) - set(WORDS)
        if unknown or not (language in RUNNABLE or language in SHOWN or "file" in asks):
            raise ValueError(f"{where}: nobody checks a block marked {match['info']!r}; see tests/docs/blocks.py")
        found.append(Block(where, language, match["body"], asks))
    return found


def commands(block: Block) -> list[str]:
    """The commands of a bash block: one per line, continued lines joined, comments left out, short flags added."""
    lines = block.body.replace("\\\n", " ").splitlines()
    kept = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    extra = block.asks.get("short", "")
    return [f"{line} {extra}" if extra and re.search(r"\b(unipo|unipo\.cli) train\b", line) else line for line in kept]
