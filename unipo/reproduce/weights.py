"""What the weights that a finished run ended with do: responses sampled from its last checkpoint."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from unipo.errors import CheckpointError, ConfigError
from unipo.evaluate.estimators import pass_at_k
from unipo.evaluate.heldout import EVAL_SEED
from unipo.policy.model import load_policy
from unipo.policy.spec import PolicySpec
from unipo.registry import get_method
from unipo.rollout.engine import Request, Sampling
from unipo.rollout.local import LocalEngine
from unipo.tasks.registry import resolve_task
from unipo.training.checkpoint import newest_good
from unipo.training.config import DataConfig, TrainConfig, read_mapping
from unipo.training.setup import encode_all, prompt_room
from unipo.training.source import score_groups


def sampled_scores(
    run: Path, task: str, prompts: int = 256, samples: int = 1, max_tokens: int = 48
) -> list[list[float]]:
    """[problem][sample] scores of responses to a task's first held-out prompts, at temperature 1; unscorable are 0.

    At most as many prompts as the run's own evaluations had, with the same seeds.  Raises ConfigError for a task
    without a reward, and CheckpointError for a run without a checkpoint (a comparison removes them once measured).
    """
    found = newest_good(run / "checkpoints")
    if found is None:
        raise CheckpointError(f"the run {run} has no checkpoint to sample from")
    chosen = resolve_task(task)
    if chosen.reward is None:
        raise ConfigError(f"the task {task!r} has no reward to score responses with")
    prompts = min(prompts, int(read_mapping(run / "config.yaml")["eval"]["prompts"]))
    policy = load_policy(PolicySpec(model=str(found[1] / "model")))
    sampling = Sampling(max_tokens=max_tokens)
    sampler = get_method("grpo")
    room = prompt_room(TrainConfig(sampling=sampling), sampler, policy)
    encoded = encode_all(policy, chosen.heldout[:prompts], DataConfig(), room, sampler, Counter())
    requests = [Request(p.ids, samples, EVAL_SEED + i, images=p.pixels) for i, p in enumerate(encoded)]
    groups = LocalEngine(policy).generate(requests, sampling)
    marks = score_groups(policy, chosen.reward, encoded, groups).scores
    return [[float(m["score"] or 0.0) for m in group] for group in marks]


def mean_score(scores: list[list[float]]) -> float:
    """Mean over problems of the mean over samples."""
    return sum(sum(group) / len(group) for group in scores) / len(scores)


def pass_rate(scores: list[list[float]], k: int) -> float:
    """Mean over problems of the chance that at least one of k samples is right."""
    return sum(pass_at_k(len(group), sum(x >= 1 for x in group), k) for group in scores) / len(scores)
