"""One batch to optimiser steps: minibatches, micro-batches, and what is measured on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from unipo.batch import Batch
from unipo.errors import TrainingError
from unipo.judge import loss, provide_for_loss, required_tokens, weigh
from unipo.method import Method
from unipo.parts.part import Scorer
from unipo.policy.model import Policy
from unipo.policy.tape import Tape
from unipo.training.critic import Critic
from unipo.training.optim import Optimiser
from unipo.training.ranks import Ranks
from unipo.training.record import Watched, watch


@dataclass
class UpdateReport:
    """What the optimiser steps of one batch did. live: per computed token of all passes, for metrics.

    value: loss, grad_norm, learning_rate, forwarded and skipped of a value model with an optimiser of its own.
    watched: live columns of the responses that are recorded token by token."""

    losses: dict[str, float] = field(default_factory=dict)
    grad_norm: float = 0.0
    rate: float = 0.0
    steps: int = 0
    skipped: int = 0
    refused: int = 0
    positions: int = 0
    computed: int = 0
    passes: int = 0
    seconds: float = 0.0
    ratio: list[Tensor] = field(default_factory=list)
    clipped: list[Tensor] = field(default_factory=list)
    gap: list[Tensor] = field(default_factory=list)
    reference_kl: list[Tensor] = field(default_factory=list)
    value: dict[str, float] = field(default_factory=dict)
    watched: Watched = field(default_factory=dict)

    def count(self, extra: UpdateReport) -> None:
        """Add the work (not the losses) of an extra update of the same step."""
        for name in ("positions", "computed", "passes", "refused", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(extra, name))


def run_updates(
    method: Method,
    batch: Batch,
    policy: Policy,
    optimiser: Optimiser,
    ranks: Ranks,
    scorer: Scorer,
    old_logp: str,
    tape: Tape | None = None,
    critic: Critic | None = None,
) -> UpdateReport:
    """All optimiser steps on one judged batch.

    old_logp: 'live' (single update: the old policy is the current one), 'behaviour', 'recompute', or 'stored' (the
    batch has them).  tape: what the engine kept while sampling this batch; the step that follows with the same weights
    reads it.  critic: the value model that learns beside the policy.
    """
    start = time.perf_counter()
    report = UpdateReport()
    if old_logp == "behaviour" and batch.has("behaviour_logp") and not batch.has("old_logp"):
        batch = batch.with_columns(None, old_logp=batch.behaviour_logp)
    batch = provide_for_loss(method, batch, scorer, skip=("old_logp",) if old_logp == "live" else ())
    old_is_current = old_logp == "recompute" or (old_logp != "stored" and _written_now(batch, policy))
    for _ in range(method.source.epochs):
        report.passes += method.divergence is not None
        for minibatch in batch.split_prompts(min(method.source.minibatches, batch.layout.n_prompts)):
            if critic is None or not critic.resting(batch.step):
                head = None if critic is None else critic.policy_head
                if old_is_current and report.steps == 0 and minibatch.has("old_logp"):
                    minibatch = minibatch.with_columns(None, current_logp=minibatch.old_logp)
                ready = weigh(method, minibatch, scorer)
                _one_step(method, ready, policy, optimiser, ranks, report, tape, head)
                policy.updates += 1
                policy.update_reference()
            if critic is not None:
                critic.step(minibatch, partial(_cut, method, policy.spec.micro_tokens or None, ranks), report.value)
    report.seconds = time.perf_counter() - start
    return merge_reports(ranks.gather_objects(report)) if ranks.world > 1 else report


def _written_now(batch: Batch, policy: Policy) -> bool:
    """Did the present weights write every token, so that the sampler's log-probs are the current policy's?"""
    if batch.has("demonstration") and bool(batch.demonstration.any()):
        return False
    return not batch.has("version") or bool((batch.version == policy.updates).all())


def _one_step(
    method: Method,
    minibatch: Batch,
    policy: Policy,
    optimiser: Optimiser,
    ranks: Ranks,
    report: UpdateReport,
    tape: Tape | None,
    value_head: nn.Module | None,
) -> None:
    optimiser.zero()
    required = required_tokens(method, minibatch)
    if not bool(required.any()):
        report.skipped += 1
        return
    totals: dict[str, float] = {}
    pieces = list(micro_batches(method, minibatch, required, policy.spec.micro_tokens or None, ranks))
    for number, (piece, wanted) in enumerate(pieces, start=1):
        live = forward(method, piece, wanted, policy, value_head, tape, final=number == len(pieces))
        value = loss(method, live)
        if not bool(torch.isfinite(value.total)):
            raise TrainingError(
                f"the loss is {float(value.total)} at update {optimiser.taken + 1}: {value.terms}. "
                "Look at the rewards and completions of this step"
            )
        value.total.backward()  # type: ignore[no-untyped-call]
        for name, x in value.terms.items():
            totals[name] = totals.get(name, 0.0) + x
        _observe(method, live, wanted, report, policy.updates)
        report.computed += int(wanted.sum())
        report.positions += piece.layout.n_tokens + piece.layout.n_context
    ranks.sum_gradients([p for _, p in optimiser.named])
    report.rate = optimiser.rate
    before = optimiser.refused
    report.grad_norm = optimiser.step()
    refused = optimiser.refused - before
    report.refused += refused
    report.steps += 1 - refused
    for name, x in _summed(totals, ranks).items():
        report.losses[name] = report.losses.get(name, 0.0) + x


def forward(
    method: Method,
    piece: Batch,
    wanted: Tensor,
    policy: Policy,
    value_head: nn.Module | None = None,
    tape: Tape | None = None,
    final: bool = False,
) -> Batch:
    """A micro-batch with the live columns its method reads, from the pass with gradient; see `Policy.columns`."""
    asked = ("entropy" in method.needs, method.divergence, method.resampled, value_head)
    columns = policy.columns(piece, wanted, *asked, tape, final)
    return piece.with_columns(None, **columns)


def merge_reports(reports: list[UpdateReport]) -> UpdateReport:
    """One report of what all ranks did: counts add up, observed tokens are put together, the rest is common."""
    first = reports[0]
    for name in ("positions", "computed"):
        setattr(first, name, sum(getattr(r, name) for r in reports))
    for name in ("ratio", "clipped", "gap", "reference_kl"):
        setattr(first, name, [x for r in reports for x in getattr(r, name)])
    for name in ("loss", "forwarded"):
        if any(name in r.value for r in reports):
            first.value[name] = sum(r.value.get(name, 0.0) for r in reports)
    for r in reports[1:]:
        first.watched |= r.watched
    first.seconds = max(r.seconds for r in reports)
    return first


def micro_batches(
    method: Method, minibatch: Batch, required: Tensor, budget: int | None, ranks: Ranks
) -> Iterator[tuple[Batch, Tensor]]:
    """This rank's pieces, each with its required tokens; sequences without any are dropped.

    A prompt's group stays on one rank, and in one piece where the budget allows, so that its prompt is forwarded once.
    """
    layout = minibatch.layout
    whole = any(t.objective.level == "prompt" for t in method.terms)
    marked = minibatch.with_columns("token", required=required)
    needed = layout.group_sum(layout.seq_sum(required.to(torch.int64))) > 0
    prompts = needed.nonzero().flatten().tolist()
    lengths = layout.group_sum(layout.seq_lengths) + layout.context_lengths
    mine = ranks.share([int(lengths[p]) for p in prompts])[ranks.rank]
    if not mine:
        return
    share = marked.take_prompts([prompts[i] for i in mine])
    if not whole:
        alive = share.layout.seq_sum(share.required.to(torch.int64)) > 0
        share = share.take_sequences(alive)
    for piece in share.split_by_tokens(budget, whole_groups=whole):
        yield piece, piece.required


def _cut(
    method: Method, budget: int | None, ranks: Ranks, minibatch: Batch, required: Tensor
) -> Iterator[tuple[Batch, Tensor]]:
    return micro_batches(method, minibatch, required, budget, ranks)


def _observe(method: Method, live: Batch, wanted: Tensor, report: UpdateReport, updates: int) -> None:
    """Keep the log-ratios of computed tokens that were sampled, or read by an offline method, for metrics (detached).

    The gap to the sampler is that of tokens which the present weights wrote, so that nothing learned since is in it.
    """
    clipped = _clipped(method, live) if live.has("old_logp") and method.advantage is not None else None
    watch(live, wanted, clipped, report.watched)
    if live.has("demonstration"):
        wanted = wanted & ~live.layout.to_tokens(live.demonstration)
        if not bool(wanted.any()):
            return
    logp = live.logp.detach()[wanted]
    if live.has("old_logp"):
        report.ratio.append((logp - live.old_logp[wanted]).to(torch.float32))
    if clipped is not None:
        report.clipped.append(clipped[wanted])
    now = live.version[wanted] == updates if live.has("version") else torch.ones_like(logp, dtype=torch.bool)
    if live.has("behaviour_logp") and bool(now.any()):
        report.gap.append((logp - live.behaviour_logp[wanted])[now].to(torch.float32))
    if live.has("reference_logp"):
        d = logp - live.reference_logp[wanted]
        report.reference_kl.append((torch.expm1(-d) + d).to(torch.float32))


def _clipped(method: Method, live: Batch) -> Tensor | None:
    """[T] bool: tokens with an advantage whose gradient the objective cut off; None if it does not say."""
    try:
        with torch.no_grad():
            pieces = method.objective.pieces(live)
    except NotImplementedError:  # an objective need not come apart into pieces
        return None
    clipped: Tensor = (pieces.mask == 0) & live.mask & (live.advantage != 0)
    return clipped


def _summed(totals: dict[str, float], ranks: Ranks) -> dict[str, float]:
    merged: dict[str, float] = {}
    for part in ranks.gather_objects(totals):
        for name, x in part.items():
            merged[name] = merged.get(name, 0.0) + x
    return merged
