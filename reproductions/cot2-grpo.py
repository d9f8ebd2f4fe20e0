"""CoT2's policy optimisation: does it raise what supervised chains of mixtures have learnt?"""

import shutil
import tempfile
from pathlib import Path

from unipo.compare.worker import one_thread
from unipo.reproduce import Reproduction
from unipo.starter.mnns import save_mnns_model
from unipo.training.config import TrainConfig, from_dict, nested
from unipo.training.run import train


def taught(folder: Path, quick: bool = False) -> None:
    """The paper's smaller model (one layer, 24 dimensions), taught the distribution of all traces."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        settings = {
            "method": "cot2-csft",
            "steps": 2 if quick else 1000,
            "prompts": 128,
            "policy.model": str(save_mnns_model(Path(name) / "model", hidden=24)),
            "data.task": "mnns",
            "optim.learning_rate": 1e-2,
            "eval.prompts": 8,
            "log.progress": False,
            "run": str(run),
        }
        with one_thread():
            train(from_dict(TrainConfig, nested(settings)))
        shutil.copytree(max((run / "checkpoints").glob("step-*")) / "model", folder)


REPRODUCTION = Reproduction(
    method="cot2-grpo",
    claim="GRPO on continuous tokens, each the mean of three sampled embeddings, raises the accuracy of a model that was "
    "taught the distribution of all traces.",
    arms={
        "cot2-grpo": "cot2-grpo",
        "taught only": "cot2-grpo[optim.warmup_steps=1000000000]",
        "one token": "cot2-grpo[source.step.k=1]",
    },
    start=taught,
    task="mnns",
    budget="30000 tokens",
    responses=128,
    points=3,
    train={"eval": {"prompts": 2000}},
    search={"lr": (3e-4, 1e-3)},
    notes="The paper's task and its model of one layer and 24 dimensions, taught for 24 passes over the data only. The "
    "weights of the baseline stand still (a warm-up without end), and all arms are sampled at evaluation as in training, "
    "in which the paper compares, too; each way of sampling starts from its own accuracy.",
)
