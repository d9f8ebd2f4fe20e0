"""Two processes do the work of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import unipo
from tests.training.conftest import alone_and_on_two_ranks, free_port, metrics, quick, slow_but, weights
from unipo.training.ranks import Ranks

# Sums are taken in another order, nothing else differs; measured 1e-8 to 3e-7 on these runs.
TOLERANCE = 2e-6


# A curriculum's memory decides which prompts come next, so its run shows at once where ranks disagree.  kl-cov makes
# four updates of one prompt per batch, so that only one rank has work: in float32 the optimiser's steps would turn
# noise into differences of their own.
SETTINGS: dict[str, dict[str, Any]] = {
    "cepo": {},
    "kl-cov": {"policy.weights": "float64"},
    "dpo": {},
    "hpt": {},
    "sdpo": {},
    "dads": {"set": {"source.group_size": 2, "curriculum.every": 1}, "prompts": 6},
    "clpo": {"set": {"curriculum.max_tokens": 8, "curriculum.shortest": 1}},
}


SAME = (
    *("loss", "grad_norm", "reward/mean", "tokens/computed", "tokens/forwarded", "length/mean"),
    "passes/extra",
)


@pytest.mark.parametrize("methods", slow_but(["dpo"], ["dpo", "cepo kl-cov hpt", "sdpo dads clpo"]))
def test_two_ranks_give_the_loss_curve_of_one(methods: str, tmp_path: Path) -> None:
    alone_and_on_two_ranks(tmp_path, {m: SETTINGS[m] for m in methods.split()}, 3)
    for method in methods.split():
        alone, ranked = tmp_path / "one" / method, tmp_path / "two" / method
        for one, two in zip(metrics(alone), metrics(ranked), strict=True):
            assert one.keys() == two.keys(), method
            assert [n for n in one if n.startswith("events/")] == [n for n in two if n.startswith("events/")], method
            for name in SAME:
                assert two.get(name) == pytest.approx(one.get(name), abs=TOLERANCE), (method, name)
        ours, theirs = weights(alone, 3), weights(ranked, 3)
        for name, tensor in ours.items():
            # Adam divides by the gradient's own size, so a tiny gradient's float noise becomes a visible step.
            torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=2e-5, msg=f"{method}: {name}")


def test_shares_cover_everything_once_and_are_balanced() -> None:
    shares = Ranks(0, 3).share([9, 1, 5, 5, 2, 2])
    assert sorted(i for s in shares for i in s) == [0, 1, 2, 3, 4, 5]
    assert sorted(sum([9, 1, 5, 5, 2, 2][i] for i in s) for s in shares) == [7, 8, 9]


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys; from pathlib import Path; from tests.training.conftest import quick\n"
        "from unipo.training import loop\n"
        "step = loop.Trainer.step\n"
        "def told(self, *args):\n"
        "    out = step(self, *args)\n"
        "    if self.ranks.rank == 1 and self.step_number == 2: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return out\n"
        "loop.Trainer.step = told\n"
        "assert quick(Path(sys.argv[1]), 'grpo', steps=50).interrupted\n"
    )
    root = Path(unipo.__file__).parents[1]
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()), str(script), str(tmp_path / "run")],
        cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert len(metrics(tmp_path / "run")) == 2
    assert (tmp_path / "run" / "checkpoints" / "step-000002" / "trainer.pt").is_file()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("method", ["grpo", "ppo", "dpo", "cepo"])
def test_a_run_on_a_gpu_learns_what_one_on_the_processor_does(method: str, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        quick(tmp_path / device, method, steps=2, **{"policy.device": device})
    for one, two in zip(metrics(tmp_path / "cpu"), metrics(tmp_path / "cuda"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-2)
