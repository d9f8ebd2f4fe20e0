"""What `eval` and `generate` share: a model to sample from, prompts as token ids, and how much room they leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from unipo.errors import ConfigError
from unipo.method import Method
from unipo.policy.model import Policy, load_policy
from unipo.policy.spec import PolicySpec
from unipo.registry import get_method
from unipo.tasks.task import Example
from unipo.training.config import DataConfig
from unipo.training.prompts import Prompt
from unipo.training.saved import find_saved
from unipo.training.setup import encode_all, end_report, model_path

# Longest response where none is asked for and the model has room for it.
MAX_TOKENS = 512


def load(model: str, compute: str = "float32") -> Policy:
    """The model to sample from, on the device there is. model: of a run, its newest checkpoint."""
    saved = find_saved(model)
    return load_policy(PolicySpec(model=str(saved.model) if saved else model_path(model), compute=compute))


def sampler() -> Method:
    """A method that samples, for set-up code that asks what kind of data is wanted."""
    return get_method("grpo")


def encode(
    policy: Policy, examples: Sequence[Example], data: DataConfig, max_tokens: int
) -> tuple[tuple[Prompt, ...], int, str]:
    """(prompts, longest response, what was left out). max_tokens 0: what the longest prompt leaves, at most 512."""
    room = policy.context_window - max(1, max_tokens)
    if room < 1:
        raise ConfigError(
            f"--max-tokens {max_tokens} leaves no room for a prompt in a context of {policy.context_window} positions"
        )
    events: Counter[str] = Counter()
    prompts = encode_all(
        policy, examples, data, min(room, data.max_prompt) if data.max_prompt else room, sampler(), events
    )
    longest = max(len(p.ids) for p in prompts)
    return prompts, max_tokens or min(MAX_TOKENS, policy.context_window - longest), end_report(events)
