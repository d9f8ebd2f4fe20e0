"""The protocol between the harness and a contender: one JSON object a line, commands in, replies out.

| command | reply |
|---|---|
| {"cmd": "setup", "shape", "dtype", "model_dir", "threads", "lr", "options"} | {"versions": {...}} |
| {"cmd": "step"} | {"step_s", "generation_s", "update_s"} |
| {"cmd": "generate"} | {"generation_s", "tokens"} |
| {"cmd": "memory"} | {"peak_mb", "imports_mb"}: the greatest resident memory so far, and that after the imports |
| {"cmd": "quit"} | none, the process ends |

A command that fails is answered by {"error": traceback}. `setup` comes first and once; a contender says in its
`setup` reply nothing about speed. Libraries print to standard output, so the protocol keeps the real one for itself
and sends everything else that is printed to standard error.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

Message = dict[str, Any]
Handler = Callable[[Message], Message]


class Channel:
    """The two ends of the conversation on the worker's side; made before any library is imported."""

    def __init__(self) -> None:
        self._replies: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        self.imports_mb = 0.0

    def receive(self) -> Message | None:
        """The next command, or None when the harness has asked to quit or has gone."""
        line = sys.stdin.readline()
        message: Message = json.loads(line) if line.strip() else {"cmd": "quit"}
        return None if message["cmd"] == "quit" else message

    def reply(self, message: Message) -> None:
        self._replies.write(json.dumps(message) + "\n")
        self._replies.flush()

    def mark_imports(self) -> None:
        """Remember the memory that the imports alone have taken."""
        self.imports_mb = peak_mb()

    def memory(self) -> Message:
        return {"peak_mb": peak_mb(), "imports_mb": self.imports_mb}


def peak_mb() -> float:
    """The greatest resident memory of this process so far, in MiB.

    Linux counts the parent's memory into `ru_maxrss` of a process that it started, until the child is larger; VmHWM
    belongs to the program alone and is read where there is one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    greatest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return greatest / (1024 * 1024) if sys.platform == "darwin" else greatest / 1024


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of some packages; those that are absent are left out."""
    found = {"python": sys.version.split()[0]}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def serve(channel: Channel, handlers: dict[str, Handler], until: str | None = None) -> bool:
    """Answer commands until `quit` (returns False) or until the command `until`, left unanswered (returns True)."""
    while (message := channel.receive()) is not None:
        if message["cmd"] == until:
            return True
        answer(channel, handlers, message)
    return False


def answer(channel: Channel, handlers: dict[str, Handler], message: Message) -> bool:
    """Answer one command; an exception is sent back as text, so that the harness can show it. Returns success."""
    answered = {"memory": lambda _: channel.memory()} | handlers
    handler = answered.get(message["cmd"])
    if handler is None:
        channel.reply({"error": f"this contender does not know the command {message['cmd']!r}"})
        return False
    try:
        channel.reply(handler(message))
    except Exception:
        channel.reply({"error": traceback.format_exc()})
        return False
    return True
