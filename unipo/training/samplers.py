"""Which sampler serves which source."""

from __future__ import annotations

from typing import Any

from unipo.errors import ConfigError
from unipo.method import Method
from unipo.parts.selection import Refill
from unipo.parts.source import OnPolicy, SegmentTree, Source, Windowed
from unipo.training.source import Sampler
from unipo.training.tree import TreeSampler
from unipo.training.window import WindowSampler

SAMPLERS: dict[type[Source], type[Sampler]] = {OnPolicy: Sampler, Windowed: WindowSampler, SegmentTree: TreeSampler}


def sampler_for(method: Method, *where: Any) -> Sampler:
    """The sampler of a method's source. where: policy, engine, reward, then sampling, seed and ranks."""
    kind = next((SAMPLERS[k] for k in type(method.source).__mro__ if k in SAMPLERS), None)
    if kind is None:
        raise ConfigError(f"no sampler knows the source {type(method.source).__name__}")
    rewrites = method.curriculum is not None and "variant" in method.curriculum.adds
    if kind is not Sampler and (rewrites or any(isinstance(s, Refill) for s in method.selection)):
        raise ConfigError(
            f"{method.name}: {type(method.source).__name__} keeps work between steps and cannot be asked again within "
            "one; leave out selections that refill (DynamicSampling) and curricula that rewrite prompts"
        )
    policy, engine, reward, sampling, seed, ranks = where
    return kind(policy, engine, reward, method, sampling, seed, ranks)
