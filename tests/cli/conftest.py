from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from unipo.cli import main
from unipo.tasks.registry import _TASKS


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


PLUGIN_TASK = """
from types import SimpleNamespace
from unipo.tasks.registry import register_task
from unipo.tasks.task import Example
from unipo.rewards import resolve_reward

def make():
    rows = tuple(Example(f"{n}+1=", str(n + 1), id=n) for n in range(8))
    reward = resolve_reward("numbers")
    return SimpleNamespace(name="sums-of-a-plugin", train=rows[:4], heldout=rows[4:], reward=reward)

register_task("sums-of-a-plugin", make)
"""


def forget_plugin() -> None:
    """As in another process, which has not loaded it."""
    _TASKS.pop("sums-of-a-plugin", None)
    sys.modules.pop("unipo_plugin_own_task", None)
