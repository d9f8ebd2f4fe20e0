"""Run the blocks of pages, in a process of its own: python run_pages.py PAGE...

Prints a line per block; exits with 1 if any failed.  Commands that are plain `unipo ...` run in a fork of this
process, so that the library is imported once; everything else runs in bash.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import blocks as pages
import torch

import unipo.cli
import unipo.training.run

PLAIN = re.compile(r"unipo [^|&;<>$`]*")
DEADLINE = 240.0


def forked(work: Callable[[], int]) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of `work` in a child process."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                status = work()
            except SystemExit as stop:
                status = int(stop.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, code = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return os.waitstatus_to_exitcode(code), texts[0], texts[1]


def run_bash(block: pages.Block) -> tuple[int, str, str]:
    lines = pages.commands(block)
    if not all(PLAIN.fullmatch(line) for line in lines):
        place = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        script = "set -euo pipefail\n" + "\n".join(lines)
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=place, timeout=DEADLINE)
        return done.returncode, done.stdout, done.stderr
    printed = ["", ""]
    for line in lines:
        status, out, err = forked(partial(unipo.cli.main, shlex.split(line)[1:]))
        printed = [printed[0] + out, printed[1] + err]
        if status:
            return status, *printed
    return 0, *printed


def run_python(block: pages.Block) -> tuple[int, str, str]:
    def work() -> int:
        sys.path.insert(0, os.getcwd())  # as for a script that lies there
        exec(compile(block.body, block.where, "exec"), {"__name__": "__main__"})
        return 0

    return forked(work)


def run_page(page: Path) -> list[str]:
    """What went wrong, block by block."""
    failures = []
    before = ""
    for block in pages.blocks(page):
        if "file" in block.asks:
            Path(block.asks["file"]).write_text(block.body)
        elif "output" in block.asks and before.rstrip() != block.body.rstrip():
            failures.append(f"{block.where}: the output is now\n{before}")
        elif block.runs:
            start = time.perf_counter()
            status, before, err = run_bash(block) if block.language == "bash" else run_python(block)
            print(f"{block.where}: {time.perf_counter() - start:.1f} s", flush=True)
            if status:
                failures.append(f"{block.where}: exit status {status}\n{block.body}\n{before[-2000:]}\n{err[-4000:]}")
    return failures


def main() -> int:
    torch.set_num_threads(1)
    failures = []
    for name in sys.argv[1:]:
        page = Path(name).resolve()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            failures += run_page(page)
            os.chdir(pages.ROOT)
    print("\n\n".join(failures), file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
