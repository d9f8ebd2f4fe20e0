"""unipo: policy optimisation for language models, every method made of the same small parts.

Names are imported when first used, so that `import unipo` and the command's help stay fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unipo.api import train as train
    from unipo.batch import Batch as Batch
    from unipo.layout import Layout as Layout
    from unipo.method import Method as Method
    from unipo.method import Paper as Paper
    from unipo.method import diff as diff
    from unipo.registry import catalogue as catalogue
    from unipo.registry import get_method as get_method
    from unipo.registry import register as register

__version__ = "0.1.0"

_PUBLIC = {
    "train": "unipo.api",
    "Batch": "unipo.batch",
    "Layout": "unipo.layout",
    "Method": "unipo.method",
    "Paper": "unipo.method",
    "diff": "unipo.method",
    "get_method": "unipo.registry",
    "register": "unipo.registry",
    "catalogue": "unipo.registry",
    "check_objective": "unipo.check",
    "check_advantage": "unipo.check",
    "check_reward": "unipo.rewards",
    "check_task": "unipo.tasks.check",
    "check_engine": "unipo.rollout.check",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'unipo' has no attribute {name!r}")
