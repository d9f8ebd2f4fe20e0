"""T-PPO against the same method that waits for every response, on a clock that counts tokens written one by one."""

import re
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from random import Random

import numpy as np

from unipo.compare.outcome import curve, lines
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.registry import register_task
from unipo.tasks.scratchpad import ScratchpadReward, scratchpad_task
from unipo.tasks.task import Example

CLOCK = 1200  # ticks over which speed is measured; runs have more
NONSENSE = 1 / 8


def speed(run: Path) -> dict[str, float]:
    """Mean held-out accuracy over the first ticks. A step takes as many as its longest new piece may have tokens."""
    window = int(re.findall(r"at most (\d+) tokens a step", (run / "method.txt").read_text())[0])
    lengths = [m["length/max"] for m in lines(run, "metrics")]
    ticks = [0.0, *accumulate(min(window, n) for n in lengths)]
    points = curve(run)
    heights = np.interp(np.arange(CLOCK), [ticks[p.steps] for p in points], [p.score for p in points])
    return {"speed": float(heights.mean()), "ticks": ticks[-1]}


def tail_task(size: int = 4096, heldout: int = 512, seed: int = 0) -> DatasetTask:
    """Scratchpad problems; one training prompt in eight is nonsense instead, which never pays and is long talked about."""
    plain, rng = scratchpad_task(size=size, heldout=heldout, seed=seed), Random(f"tail {seed}")

    def perhaps_nonsense(example: Example) -> Example:
        if rng.random() >= NONSENSE:
            return example
        letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=9))
        return replace(example, prompt=[{"role": "user", "content": letters}], answer="?")

    return DatasetTask("tail", tuple(map(perhaps_nonsense, plain.train)), tuple(plain.heldout), ScratchpadReward())


register_task("tail", tail_task)

REPRODUCTION = Reproduction(
    method="t-ppo",
    claim="Writing responses a window at a time and learning from unfinished ones reaches the same accuracy in less time "
    "than waiting for the longest response.",
    arms={
        "t-ppo": "t-ppo[value.learning_rate=4e-4]",
        "whole responses": "t-ppo[source.window=96,value.learning_rate=4e-4]",
    },
    metrics=(
        Metric("speed", f"mean held-out accuracy over the first {CLOCK} ticks"),
        ACCURACY,
        Metric("ticks", "ticks in all", higher=False, kind="number"),
    ),
    measure=speed,
    task="tail",
    budget="80000 tokens",
    points=9,
    select="speed",
    train={"sampling": {"max_tokens": 96}},
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="A tick is one token written by every response at once; the time of updates is left out. With a window of the "
    "whole budget the method is PPO with a Monte-Carlo target for the value model. The window is a third of the budget, "
    "as in the paper. The shipped model's answers are all of about 26 tokens; what makes others wait are nonsense "
    "prompts, a sixth of whose responses run to the budget of 96. The value model's learning rate is twice a usual "
    "policy's, as in the paper, but without learning alone first.",
)
