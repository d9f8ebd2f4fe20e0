"""What every test runs under: one torch thread, no network, and, with --core, no optional package.

One thread because several workers (or several ranks of one test) with a thread pool each wait for one another at
every small product; generation on two cores was seen to become forty times slower.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch
from hypothesis import settings

# Inherited by processes that tests start, and read by libraries when they are imported.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Packages of the extras in pyproject.toml, under the names they are imported by.
OPTIONAL = (
    *("peft", "accelerate", "datasets", "pyarrow", "pandas", "reasoning_gym", "math_verify", "latex2sympy2_extended"),
    *("matplotlib", "scipy", "tensorboard", "wandb", "mlflow", "trackio", "lm_eval", "mkdocs"),
)

torch.set_num_threads(1)
settings.register_profile("unipo", deadline=None, print_blob=True)  # no timing assertions: the machine may be busy
settings.load_profile("unipo")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--core", action="store_true", help="hide the packages of the optional extras from the tests")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--core"):
        for name in OPTIONAL:
            sys.modules[name] = None  # type: ignore[assignment]  # importing it is then a ModuleNotFoundError
