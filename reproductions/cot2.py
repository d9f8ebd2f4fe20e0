"""CoT2's supervised chains: the distribution of many traces against one trace."""

from dataclasses import replace
from pathlib import Path

import yaml

from unipo.evaluate.heldout import sampled_accuracy
from unipo.reproduce import Metric, Reproduction
from unipo.rollout.engine import Sampling
from unipo.starter.mnns import save_mnns_model
from unipo.training.config import TrainConfig, from_dict
from unipo.training.setup import build


def untrained(folder: Path, quick: bool = False) -> None:
    """The paper's smaller model: one layer, 24 dimensions."""
    save_mnns_model(folder, hidden=24)


def answers(run: Path) -> dict[str, float]:
    """Held-out answers that are right, every step at its likeliest: mixtures are fed back, or tokens where one trace
    was taught."""
    config = from_dict(TrainConfig, yaml.safe_load((run / "config.yaml").read_text()))
    reader = "grpo" if config.set.get("source.traces") == 1 else "cot2-grpo"
    model = str(max((run / "checkpoints").glob("step-*/model")))
    made = build(replace(config, method=reader, set={}, policy=replace(config.policy, model=model)))
    assert made.reward is not None
    sampling = Sampling(temperature=0.0, max_tokens=4)
    found = sampled_accuracy(made.policy, made.engine, made.reward, made.heldout, sampling)
    return {"accuracy": found.accuracy}


REPRODUCTION = Reproduction(
    method="cot2-csft",
    claim="A chain of mixtures that is taught the distribution of all traces finds the answer more often than a chain of "
    "tokens that is taught the best trace.",
    arms={
        "cot2-csft": "cot2-csft",
        "one trace": "cot2-csft[source.traces=1]",
    },
    metrics=(Metric("accuracy", "held-out answers that are right"),),
    measure=answers,
    start=untrained,
    task="mnns",
    budget="800 steps",
    seeds=6,
    responses=128,
    points=0,
    train={"optim": {"schedule": "cosine"}, "eval": {"prompts": 2000}, "save": {"keep": 1}},
    search={"lr": (3e-3, 1e-2)},
    select="accuracy",
    notes="The paper's task and its model of one layer and 24 dimensions, but only 20 passes over the data, which leave "
    "both arms far from the paper's accuracies; steps are equal, as nothing is sampled. The one trace is read as it was "
    "taught, a likeliest token fed back at each step. All seeds share the first weights and differ in the order of "
    "examples.",
)
