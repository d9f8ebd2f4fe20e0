"""From scored sequences to a weighted loss: the model-free middle of the loop.

`judge` turns rewards into per-token advantages, asking the models (through a `Scorer`) only for the columns
some part reads.  `weigh` fixes on the whole minibatch every unit's weight and whatever else an objective counts over
it.  `loss` is then a plain sum, the same however the batch is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.columns import COLUMNS
from unipo.errors import ConfigError
from unipo.method import Method
from unipo.parts.part import Derived, Objective, Part, Scorer, Selection, Signal


def with_mask(method: Method, batch: Batch) -> Batch:
    """Add `mask`: trainable tokens of scored responses (and demonstrations) that every selection keeps.

    Prompt-level selections have already removed their prompts when the batch was collected; late ones follow
    after credit.
    """
    mask: Tensor = batch.trainable
    if batch.has("scored"):
        counted = batch.scored | batch.demonstration if batch.has("demonstration") else batch.scored
        mask = mask & batch.layout.to_tokens(counted)
    for part in method.selection:
        if part.level != "prompt" and not part.late:
            mask = mask & _kept_tokens(part, batch)
    return batch.with_columns(None, mask=mask)


def _kept_tokens(part: Selection, batch: Batch) -> Tensor:
    """[T] bool: what a selection of sequences or tokens keeps."""
    kept = part(batch)
    return batch.layout.to_tokens(kept) if part.level == "sequence" else kept


def provide(method: Method, batch: Batch, part: Part, scorer: Scorer | None, per_step: bool = False) -> Batch:
    """The batch with every signal column that `part` reads and that can exist now, each computed once.

    per_step: only signals of one minibatch; without it, only those of the whole batch.
    """
    for need in part.needs:
        if batch.has(need) or (need in COLUMNS and COLUMNS[need].stage not in ("signal", "step")):
            continue
        signal = next((s for s in method.signals if need in s.adds), None)
        if signal is None or signal.per_step != per_step or not signal.active(batch):
            continue
        batch = provide(method, batch, signal, scorer, per_step)
        if scorer is None and not isinstance(signal, Derived):
            raise ConfigError(f"{type(part).__name__} needs {need!r}, but no model was given to compute it")
        batch = with_signal(batch, signal, scorer)
    return batch


def with_signal(batch: Batch, signal: Signal, scorer: Scorer | None = None) -> Batch:
    """The batch with the columns of a signal. scorer: not asked by a `Derived` one."""
    columns = signal.derive(batch) if isinstance(signal, Derived) else signal(batch, scorer)  # type: ignore[arg-type]
    for name, column in columns.items():
        batch = batch.with_columns(None if name in COLUMNS else signal.level, **{name: column})
    return batch


def rewarded(batch: Batch) -> Tensor:
    """[S] bool: responses whose reward is known: scored, and not still being written."""
    scored: Tensor = batch.scored
    return scored & ~batch.unfinished if batch.has("unfinished") else scored


def known_rewards(batch: Batch) -> Tensor:
    """Rewards of the responses that have one; none where the source gives no rewards."""
    return batch.reward[rewarded(batch)] if batch.has("reward") else torch.zeros(0, dtype=torch.float64)


def judge(method: Method, batch: Batch, scorer: Scorer | None = None) -> Batch:
    """Reward -> shaping -> advantage -> credit -> late selections.

    Adds mask, (reward, token_reward), sequence_advantage, advantage, (returns).
    An offline method only gets its mask.  Tokens off the mask have advantage 0, as have demonstrations without a
    score: what is beside the scored responses is no part of their statistics.
    """
    batch = with_mask(method, batch)
    if not batch.has("demonstration"):
        return _judged(method, batch, scorer)
    beside = batch.mask & ~batch.layout.to_tokens(batch.scored)
    batch = _judged(method, batch.with_columns(None, mask=batch.mask & ~beside), scorer)
    return batch.with_columns(None, mask=batch.mask | beside)


def _judged(method: Method, batch: Batch, scorer: Scorer | None) -> Batch:
    if batch.sampled_reward is None:
        rewards = known_rewards(batch)
        batch = replace(batch, sampled_reward=float(rewards.mean()) if len(rewards) else None)
    if "token_reward" in method.needs and not batch.has("token_reward"):
        batch = batch.with_columns(None, token_reward=torch.zeros(batch.layout.n_tokens, dtype=torch.float64))
    for shaping in method.shaping:
        batch = provide(method, batch, shaping, scorer)
        batch = batch.with_columns(None, **{shaping.adds[0]: shaping(batch)})
    if method.advantage is None:
        return batch
    batch = provide(method, batch, method.advantage, scorer)
    value = method.advantage(batch)
    if method.advantage.level == "sequence":
        batch = batch.with_columns(None, sequence_advantage=value)
        value = batch.layout.to_tokens(value)
    batch = batch.with_columns(None, advantage=torch.where(batch.mask, value, torch.zeros_like(value)))
    for credit in method.credit:
        batch = provide(method, batch, credit, scorer)
        value = credit(batch)
        batch = batch.with_columns(None, advantage=torch.where(batch.mask, value, torch.zeros_like(value)))
    if method.value is not None:
        batch = provide(method, batch, method.value, scorer)
        batch = batch.with_columns(None, returns=method.value.returns(batch))
    for part in (s for s in method.selection if s.late):
        batch = provide(method, batch, part, scorer)
        mask = batch.mask & _kept_tokens(part, batch)
        value = torch.where(mask, batch.advantage, torch.zeros_like(batch.advantage))
        batch = batch.with_columns(None, mask=mask, advantage=value)
    return batch


def provide_for_loss(method: Method, batch: Batch, scorer: Scorer | None = None, skip: Sequence[str] = ()) -> Batch:
    """Add the signal columns the loss terms read (`skip` names those that the forward pass will fill)."""
    for term in method.terms:
        lacking = [n for n in skip if n in term.objective.needs and not batch.has(n)]
        held = batch.with_columns(None, **{n: torch.zeros(batch.layout.n_tokens) for n in lacking})
        batch = provide(method, held, term.objective, scorer).without(*lacking)
    return batch


def weigh(method: Method, batch: Batch, scorer: Scorer | None = None) -> Batch:
    """Add what is counted over this whole minibatch before it is cut: `weight.K` for each term K, the weight of every
    unit, and what objectives prepare.

    scorer: the policy as it is now.  Without one the minibatch is the first of its batch, where the current policy is
    the old one.
    """
    for k, term in enumerate(method.terms):
        objective, level = term.objective, term.objective.level
        if scorer is None and "current_logp" in objective.needs and not batch.has("current_logp"):
            batch = batch.with_columns(None, current_logp=batch.old_logp)
        batch = provide(method, batch, objective, scorer, per_step=True)
        batch = with_prepared(objective, batch)
        batch = batch.with_columns(level, **{f"weight.{k}": term.average.weights(batch, level)})
    return batch


@torch.no_grad()
def with_prepared(objective: Objective, batch: Batch) -> Batch:
    """The minibatch with the columns that an objective prepares; a number is spread over all rows."""
    for name, value in objective.prepare(batch).items():
        level = objective.prepares[name]
        column = value.expand(batch.layout.size(level)) if value.dim() == 0 else value
        batch = batch.with_columns(level, **{name: column})
    return batch


def required_tokens(method: Method, batch: Batch) -> Tensor:
    """[T] bool: tokens whose log-prob can receive gradient from some term. The rest is never computed."""
    layout = batch.layout
    required = torch.zeros(layout.n_tokens, dtype=torch.bool, device=batch.tokens.device)
    for k, term in enumerate(method.terms):
        alive: Tensor = getattr(batch, f"weight.{k}") != 0
        if term.objective.level == "prompt":
            alive = layout.to_sequences(alive)
        if term.objective.level in ("prompt", "sequence"):
            alive = layout.to_tokens(alive)
        required |= alive & term.objective.active(batch)
    return required


@dataclass(frozen=True)
class Loss:
    """total: scalar with gradient.  terms: detached value of each term, coefficient included."""

    total: Tensor
    terms: dict[str, float] = field(default_factory=dict)


def loss(method: Method, batch: Batch) -> Loss:
    """Sum over terms and units of coefficient * weight * loss. Needs live columns (`logp`, ...) and `weigh`ed.

    Without `old_logp` the batch is at its first and only update, where the old policy is the current one.
    """
    if not batch.has("old_logp"):
        batch = batch.with_columns(None, old_logp=batch.logp.detach())
    total = torch.zeros((), dtype=torch.float64, device=batch.logp.device)
    terms: dict[str, float] = {}
    for k, term in enumerate(method.terms):
        values = term.objective(batch)
        weight: Tensor = getattr(batch, f"weight.{k}")
        value = term.strength * (torch.where(weight != 0, values, torch.zeros_like(values)) * weight).sum()
        name = type(term.objective).__name__
        terms[name] = terms.get(name, 0.0) + float(value.detach())
        total = total + value.to(total.dtype)
    return Loss(total, terms)


def remember(method: Method, batch: Batch) -> Batch:
    """The batch with the memory of every stateful part updated from it, but for the curriculum's (see `observe`)."""
    states = dict(batch.states)
    for name, part in method.parts:
        if part.state_key is not None and name != "curriculum":
            states[part.state_key] = part.remember(batch)
    return replace(batch, states=states)


def observe(method: Method, sampled: Batch) -> Batch:
    """The batch with the curriculum's memory updated from it. sampled: all of a step, dropped prompts included."""
    part = method.curriculum
    if part is None or part.state_key is None:
        return sampled
    return replace(sampled, states={**sampled.states, part.state_key: part.remember(sampled)})
