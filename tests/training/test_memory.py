"""Freed blocks stay with the process where glibc can be asked for it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import torch
from unipo.training.memory import keep_freed_memory

def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

assert {ask} == False or keep_freed_memory()
before = held()
block = torch.ones(100 * 2**18)
del block
print(held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(("ask", "kept"), [(True, True), (False, False)])
def test_a_freed_block_is_kept(ask: bool, kept: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(ask=ask)], capture_output=True, text=True, check=True, timeout=120
    )
    assert (float(done.stdout) > 50) is kept
