"""Every command and code block that a reader may copy runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import blocks as pages
import pytest

HERE = Path(__file__).parent

# Blocks that cannot run here, by the reason their info string gives. A new one needs a line in this list.
NOT_RUN = {"hub": 3, "installs": 6, "long": 1, "serves": 3}


@pytest.mark.slow
def test_every_block_of_every_page_runs(tmp_path: Path) -> None:
    with_blocks = [str(p) for p in pages.pages() if any(b.runs for b in pages.blocks(p))]
    home = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "run_pages.py"), *with_blocks], capture_output=True, text=True, env=home
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_only_the_listed_blocks_are_not_run() -> None:
    found: dict[str, int] = {}
    for page in pages.pages():
        for block in pages.blocks(page):
            if "norun" in block.asks:
                found[block.asks["norun"]] = found.get(block.asks["norun"], 0) + 1
    assert found == NOT_RUN


def test_every_link_to_a_file_of_the_repository_exists() -> None:
    broken = []
    for page in pages.pages():
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http", "#")) and not (page.parent / target.partition("#")[0]).exists():
                broken.append(f"{page.relative_to(pages.ROOT)}: {target}")
    assert broken == []
