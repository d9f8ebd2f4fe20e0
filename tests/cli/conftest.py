from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from unipo.cli import main


@dataclass(frozen=True)
class Said:
    """What a command printed and how it ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of standard output, which must be JSON."""
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture
def unipo(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Run the command in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Said:
        status = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return call
