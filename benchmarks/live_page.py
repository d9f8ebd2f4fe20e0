"""What following a run costs it: processor time of `unipo view` and of a browser that shows the page.

python benchmarks/live_page.py [--seconds 60]; needs chromium, chromedriver and selenium (extra `dev`).  A run trains,
the server and the page follow it; after the page has loaded, the processor seconds of each are divided by the wall
time, which gives shares of one core.  All of them are work that the machine does beside the training.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

UNIPO = (sys.executable, "-m", "unipo")
TICK = os.sysconf("SC_CLK_TCK")


def family(root: int) -> list[int]:
    """A process and everything below it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := read_stat(int(entry.name))):
            parents[int(entry.name)] = int(stat[1])
    found, at = [root], 0
    while at < len(found):
        found += [p for p, parent in parents.items() if parent == found[at]]
        at += 1
    return found


def read_stat(process: int) -> list[str]:
    """The fields of /proc/PROCESS/stat after its name; empty if it has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def processor_seconds(root: int) -> float:
    """Of a process and everything below it, ended children included."""
    stats = [read_stat(p) for p in family(root)]
    return sum(sum(int(x) for x in s[11:15]) for s in stats if s) / TICK


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to watch")
    seconds = parser.parse_args().seconds
    from selenium import webdriver

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        quiet = ("--log.no-progress", "--eval.no-before", "--eval.no-after")
        training = subprocess.Popen([*UNIPO, "train", "--run", str(run), "--steps", "100000", *quiet])
        while not (run / "metrics.jsonl").is_file():
            time.sleep(0.5)
        server = subprocess.Popen([*UNIPO, "view", str(run), "--port", "0"], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        address = next(m[0] for line in server.stdout if (m := re.search(r"http://\S+", line)))
        options = webdriver.ChromeOptions()
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            browser.get(address)
            time.sleep(10)
            watched = {"server": server.pid, "browser": browser.service.process.pid, "training": training.pid}
            before = {name: processor_seconds(p) for name, p in watched.items()}
            steps, start = count_lines(run), time.perf_counter()
            time.sleep(seconds)
            wall = time.perf_counter() - start
            shares = {name: (processor_seconds(p) - before[name]) / wall for name, p in watched.items()}
            print(json.dumps({"seconds": round(wall, 1), "steps": count_lines(run) - steps, **shares}))
        finally:
            browser.quit()
            server.kill()
            training.kill()


def count_lines(run: Path) -> int:
    return len((run / "metrics.jsonl").read_text().splitlines())


if __name__ == "__main__":
    main()
