"""Small runs of the starter model, shared by the tests of the loop."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import unipo
from unipo.starter.mnns import save_mnns_model

# What a method asks of the task and the starter's task does not have: formats of responses, here their first digit.
ASKED: dict[str, dict[str, Any]] = {
    "ada-grpo": {"shaping.0.signal.tags": " ".join(f"<think>{digit}" for digit in range(10))}
}
TIMED = ("seconds/", "speed/", "mfu/")


def quick(run: Path, method: str = "grpo", steps: int = 3, **settings: Any) -> unipo.training.run.Result:
    """A run of a few steps of four small groups."""
    base: dict[str, Any] = {
        "sampling.max_tokens": 40,
        "optim.learning_rate": 1e-4,
        "eval.prompts": 8,
        "log.progress": False,
        "prompts": 4,
        "run": str(run),
    }
    if settings.get("resume"):  # by the settings the run was begun with
        return unipo.train(steps=steps, run=str(run), **settings)
    return unipo.train(method=method, steps=steps, **(base | settings))


def metrics(run: Path) -> list[dict[str, float]]:
    """Logged metrics without those that measure time."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(TIMED)} for line in lines]


def weights(run: Path, step: int) -> dict[str, Any]:
    files = (run / "checkpoints" / f"step-{step:06d}" / "model").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(str(file)).items()}


@cache
def _mnns_model() -> str:
    return str(save_mnns_model(tempfile.mkdtemp(), hidden=16, digits=2, largest=2))


def own_task(method: str) -> dict[str, Any]:
    """What continuous tokens need instead of the starter: a task with their targets, in a vocabulary so small that an
    untrained model is sometimes right. Nothing for other methods."""
    if "step_ids" not in unipo.catalogue()[method].source.adds:
        return {}
    return {"policy.model": _mnns_model(), "data.task": "mnns?digits=2&largest=2&heldout=0", "prompts": 24}


@pytest.fixture
def rows(tmp_path: Path) -> Callable[[list[dict[str, Any]]], str]:
    """Write rows to a JSONL file and return its path."""

    def write(data: list[dict[str, Any]], name: str = "data.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in data))
        return str(path)

    return write


# The core suite runs these through the loop, every method through the battery; the slow suite runs all through both.
CORE = ("sft", "reinforce", "grpo", "dapo", "gspo", "cepo", "dpo", "ppo")


def slow_but(core: Collection[str], names: Iterable[str]) -> list[Any]:
    """Names for `parametrize`, those outside `core` marked slow."""
    return [pytest.param(name, marks=[] if name in core else [pytest.mark.slow]) for name in names]


def every_method() -> list[Any]:
    """The catalogue for `parametrize`."""
    return slow_but(CORE, unipo.catalogue())


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def on_two_ranks(folder: Path, script: str, *args: str | Path) -> None:
    """Run a script in two processes that know of each other, with what torchrun tells them and without its own process."""
    file, root = folder / "script.py", Path(unipo.__file__).parents[1]
    file.write_text("import sys; from pathlib import Path; from tests.training.conftest import quick\n" + script)
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "PYTHONPATH": str(root)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(file), *map(str, args)], cwd=root, stderr=subprocess.PIPE, text=True,
            env=os.environ | told | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [p.communicate(timeout=300)[1] for p in processes]
    finally:
        for p in processes:
            p.kill()
    for p, text in zip(processes, said, strict=True):
        assert p.returncode == 0, text


def alone_and_on_two_ranks(folder: Path, runs: Mapping[str, dict[str, Any]], steps: int) -> None:
    """Every run by one process (folder/one/METHOD) and by two (folder/two/METHOD), which do one after another."""
    script = "import os\n"
    for method, settings in runs.items():
        quick(folder / "one" / method, method, steps=steps, **settings)
        script += f"os.environ['MASTER_PORT'] = '{free_port()}'\n"
        script += f"quick(Path(sys.argv[1]) / {method!r}, {method!r}, steps={steps}, **{settings!r})\n"
    on_two_ranks(folder, script, folder / "two")
