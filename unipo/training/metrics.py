"""What every run measures. Each name is explained in `GLOSSARY`, which the documentation prints."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.judge import rewarded
from unipo.method import Method
from unipo.training.source import Collected
from unipo.training.update import UpdateReport

GLOSSARY: dict[str, str] = {
    "reward/mean": "mean total reward of scored responses, before shaping by the method",
    "reward/std": "standard deviation of the same",
    "reward/NAME": "mean of one component of the reward, before its weight",
    "components/correlation": "lowest correlation between two components that the method reads; one that falls hints at a "
    "reward that is gamed (refusing everything is safe, and helps nobody)",
    "score/mean": "mean of the task's own score (1 = right)",
    "length/mean": "response length in tokens, end token included",
    "length/max": "longest response",
    "truncated": "share of responses cut off by max_tokens",
    "unfinished": "share of responses that go on at the next step and have no reward yet (windowed sources)",
    "unscored": "share of responses without a reward",
    "groups/zero_variance": "share of prompts whose responses all have the same reward: no signal from them",
    "entropy": "mean entropy in nats of the sampling distribution over sampled tokens",
    "advantage/abs": "mean absolute advantage over counted tokens",
    "kl/reference": "k3 estimate of KL(policy || reference) over computed tokens, nats per token",
    "kl/old": "mean of old log-prob minus new: how far the updates of this batch moved, nats per token",
    "ratio/q01 q50 q99": "quantiles of policy/old policy over computed tokens",
    "clip_fraction": "share of computed tokens whose gradient the objective cut off",
    "gap/mean": "mean |trainer - sampler| log-prob of the same tokens, where the weights are those that wrote them (sampler "
    "mismatch)",
    "gap/max": "largest of the same",
    "mismatch/weight weight_max": "mean and largest importance weight pi_old/sampler, after truncation, over all counted "
    "tokens, those that a gate drops included",
    "mismatch/effective": "effective share of samples under these weights, as if nothing were dropped: 1 where all are equal",
    "mismatch/kl": "k1 estimate of KL(sampler || old policy), nats per token",
    "mismatch/dropped": "share of counted tokens that a correction drops",
    "staleness/mean max": "batches trained between the weights that wrote a token and the ones trained now",
    "loss": "value of the loss, summed over its terms (its sign and size mean little for policy gradients)",
    "grad_norm": "gradient norm before clipping, of the last optimiser step",
    "learning_rate": "of the last optimiser step",
    "demonstrations": "responses of the data learnt from, beside sampled ones",
    "guard/improvement": "how much better this batch is than the recent past, in standard deviations",
    "guard/updates": "extra optimiser steps a guard asked for on the batch before",
    "guard/loss": "value of the loss of the extra update",
    "guard/grad_norm": "its gradient norm before clipping",
    "value/mean": "mean of what the value model expected, over the tokens it learns from",
    "value/explained": "1 - variance(returns - values) / variance(returns): 1 is perfect, 0 no better than a constant",
    "value/loss": "loss of a value model with an optimiser of its own, summed over its steps",
    "value/grad_norm learning_rate": "of its last optimiser step",
    "value/forwarded": "positions forwarded with gradient for it",
    "value/skipped": "its optimiser steps not taken because no token had a target",
    "updates/taken": "optimiser steps taken",
    "updates/skipped": "optimiser steps not taken because no token had a gradient",
    "tokens/sampled": "tokens sampled for this step, dropped prompts included",
    "tokens/continued": "tokens sampled on from the middle of responses, to value their segments",
    "tokens/computed": "token log-probs computed with gradient",
    "tokens/forwarded": "positions forwarded with gradient (prompts counted once per group)",
    "passes/extra": "forward passes without gradient over the batch (reference, evidence, old policy) or a minibatch (current policy)",
    "speed/generation": "sampled tokens per second of generation",
    "speed/training": "forwarded positions per second of update",
    "mfu/training": "floating-point operations of the update per second, over the matrix-product rate measured here",
    "seconds/step": "wall time of the whole step",
    "seconds/generation update reward": "its parts",
    "seconds/record": "wall time of writing responses down, after the step",
    "record/bytes": "what was written about single responses, uncompressed",
    "epoch": "passes over the training prompts so far",
    "events/NAME": "how often something named was counted and skipped",
}


def batch_metrics(collected: Collected, batch: Batch, method: Method, raw_reward: Tensor | None) -> dict[str, float]:
    """Metrics of a sampled (or read) batch. raw_reward: [S] before shaping."""
    out = {}
    if batch.has("demonstration"):
        used = batch.layout.seq_count(batch.mask) > 0
        out["demonstrations"] = float((used & batch.demonstration).sum())
        sampled = ~batch.demonstration
        raw_reward = None if raw_reward is None else raw_reward[sampled]
        batch = batch.take_sequences(sampled)
    layout = batch.layout
    lengths = layout.seq_lengths.to(torch.float64)
    out |= {"length/mean": float(lengths.mean()), "length/max": float(lengths.max())}
    if batch.has("truncated"):
        out["truncated"] = float(batch.truncated.double().mean())
    if raw_reward is not None:
        scored = rewarded(batch)
        values = raw_reward[scored]
        if len(values):
            out["reward/mean"] = float(values.mean())
            out["reward/std"] = float(values.std(unbiased=False))
            out["score/mean"] = float(batch.score[scored].mean())
        out["unscored"] = float((~batch.scored).double().mean())
        if batch.has("unfinished"):
            out["unfinished"] = float(batch.unfinished.double().mean())
        if method.source.group > 1:
            out["groups/zero_variance"] = float(layout.group_constant(raw_reward, scored).double().mean())
    for name, (total, count) in collected.parts.items():
        out[f"reward/{name}"] = total / count
    if batch.has("behaviour_entropy") and layout.n_tokens:
        out["entropy"] = float(batch.behaviour_entropy[batch.trainable].double().mean())
    if batch.has("advantage") and bool(batch.mask.any()):
        out["advantage/abs"] = float(batch.advantage[batch.mask].abs().mean())
    for _, part in method.parts:
        out |= part.measure(batch)
    for name, count in sorted(collected.events.items()):
        out[f"events/{name}"] = float(count)
    return out


def update_metrics(report: UpdateReport) -> dict[str, float]:
    """Metrics of the optimiser steps of one batch."""
    out: dict[str, float] = {
        "loss": sum(report.losses.values()),
        "grad_norm": report.grad_norm,
        "learning_rate": report.rate,
        "tokens/computed": float(report.computed),
        "tokens/forwarded": float(report.positions),
        "updates/taken": float(report.steps),
        "updates/skipped": float(report.skipped),
    }
    if report.refused:
        out["events/gradient_too_large"] = float(report.refused)
    if report.ratio:
        log_ratio = torch.cat(report.ratio)
        ratio = log_ratio.clamp(-20, 20).exp()
        for q in (0.01, 0.5, 0.99):
            out[f"ratio/q{round(100 * q):02d}"] = float(_quantile(ratio, q))
        out["kl/old"] = float(-log_ratio.mean())
    if report.clipped:
        out["clip_fraction"] = float(torch.cat(report.clipped).double().mean())
    if report.gap:
        gap = torch.cat(report.gap).abs()
        out["gap/mean"], out["gap/max"] = float(gap.mean()), float(gap.max())
    out |= {f"value/{name}": x for name, x in report.value.items()}
    if report.reference_kl:
        out["kl/reference"] = float(torch.cat(report.reference_kl).mean())
    return out


def speed_metrics(
    collected: Collected, report: UpdateReport, seconds: float, flops_per_position: float, rate: float
) -> dict[str, float]:
    """Throughput. flops_per_position: of forward and backward; rate: measured matrix-product FLOP/s."""
    out = {"seconds/step": seconds, "seconds/update": report.seconds, "tokens/sampled": float(collected.sampled_tokens)}
    if collected.generation_seconds:
        out["seconds/generation"] = collected.generation_seconds
        out["seconds/reward"] = collected.reward_seconds
        out["speed/generation"] = collected.sampled_tokens / collected.generation_seconds
    if report.positions and report.seconds:
        out["speed/training"] = report.positions / report.seconds
        out["mfu/training"] = report.positions * flops_per_position / report.seconds / rate
    return out


def _quantile(x: Tensor, q: float) -> Tensor:
    """Nearest-rank quantile; torch.quantile refuses more than 2^24 values."""
    at = max(0, min(len(x) - 1, math.ceil(q * len(x)) - 1))
    return x.kthvalue(at + 1).values
