"""Public checkers: run them on a part of your own before training with it.

`check_advantage` and `check_objective` build random ragged batches (groups of different size, empty responses,
tool tokens, an unscored response, a group of equal rewards) and test what every built-in part keeps.  They return a
report, and raise `CheckFailed` naming each property that does not hold.

    from unipo.check import check_objective
    check_objective(MyObjective(temperature=2.0))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.check_batch import infected, random_batch, reordered
from unipo.errors import ConfigError, UnipoError
from unipo.judge import with_prepared, with_signal
from unipo.parts.average import Average, GroupMean, SequenceMean, TokenMean
from unipo.parts.part import Advantage, Derived, Objective, Part

TOLERANCE = 1e-9  # float64; sums may be taken in another order

Prepare = Callable[[Batch, torch.Generator], Batch]


class CheckFailed(UnipoError, AssertionError):
    """A part does not keep a property that every part must keep. `report` holds all findings."""

    def __init__(self, report: CheckReport) -> None:
        super().__init__(str(report))
        self.report = report


@dataclass(frozen=True)
class Finding:
    """One property. status: 'ok', 'failed' or 'skipped'; detail: what was seen, or why it was skipped."""

    name: str
    status: str
    detail: str = ""


@dataclass(frozen=True)
class CheckReport:
    """What was checked of a part, and what came out."""

    part: str
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        """What did not hold."""
        return tuple(f for f in self.findings if f.status == "failed")

    def __str__(self) -> str:
        width = max(len(f.name) for f in self.findings)
        rows = [f"  {f.status:<7}  {f.name:<{width}}  {f.detail}".rstrip() for f in self.findings]
        verdict = "passed" if self.passed else f"failed {len(self.failures)} of {len(self.findings)} checks"
        return "\n".join([f"{self.part}: {verdict}", *rows])


class _Failure(Exception):
    """Inside a check: the property does not hold."""


class _Skip(Exception):
    """Inside a check: the property does not apply."""


def check_advantage(
    advantage: Advantage,
    *,
    zero_variance: bool | None = None,
    prepare: Prepare | None = None,
    batches: int = 5,
    seed: int = 0,
) -> CheckReport:
    """Check an advantage on random batches. Raises CheckFailed if a property does not hold.

    zero_variance: whether a group of equal rewards must get exactly 0; None: yes if it compares only the responses of
    a group (`smallest_group` > 1).  prepare(batch, generator): adds columns of your own.
    """
    compares = advantage.smallest_group > 1 and not advantage.batchwide if zero_variance is None else zero_variance
    trials = _trials(advantage, prepare, batches, seed, pairs=False)

    def shape(batch: Batch) -> None:
        level = advantage.level
        if level not in ("sequence", "token"):
            raise _Failure(f"level is 'sequence' or 'token', got {level!r}")
        _same_shape(advantage(batch), batch.layout.size(level), level)

    def finite(batch: Batch) -> None:
        _all_finite(advantage(infected(batch)), "with nan rewards on unscored responses and inf off the mask")

    def outside_is_zero(batch: Batch) -> None:
        counted = batch.mask if advantage.level == "token" else batch.scored
        stray = (advantage(batch)[~counted] != 0).sum()
        if int(stray):
            raise _Failure(f"{int(stray)} values outside the {'mask' if advantage.level == 'token' else 'scored'}")

    def zero(batch: Batch) -> None:
        if not compares:
            raise _Skip("does not compare the responses of a group")
        layout = batch.layout
        same = layout.to_sequences(layout.group_constant(batch.reward, batch.scored))
        value = advantage(batch)[layout.to_tokens(same) if advantage.level == "token" else same]
        if bool((value != 0).any()):
            raise _Failure(f"largest value {float(value.abs().max()):.3g} where all rewards of a group are equal")

    def order(batch: Batch) -> None:
        _equivariant(advantage, batch, advantage.level, seed)

    checks = {
        "formula is not empty": lambda _: _formula(advantage),
        "reads only what it declares": lambda b: advantage(_declared(advantage, b)),
        "one number per unit": shape,
        "finite whatever the masked values are": finite,
        "unscored or masked get 0": outside_is_zero,
        "equal rewards get 0": zero,
        "order of prompts and responses": order,
        "same result twice, inputs unchanged": lambda b: _pure(advantage, b),
    }
    return _run(advantage, checks, trials)


def check_objective(
    objective: Objective,
    *,
    average: Average | None = None,
    prepare: Prepare | None = None,
    batches: int = 5,
    seed: int = 0,
) -> CheckReport:
    """Check an objective (or regulariser) on random batches. Raises CheckFailed if a property does not hold.

    average: the denominator to weigh its units with; None: TokenMean, SequenceMean or GroupMean by its level.
    prepare(batch, generator): adds columns of your own.
    """
    level = objective.level
    by_level: Mapping[str, Average] = {"token": TokenMean(), "sequence": SequenceMean(), "prompt": GroupMean()}
    if level not in by_level:
        raise ConfigError(f"{type(objective).__name__}.level is 'token', 'sequence' or 'prompt', got {level!r}")
    averaged = average or by_level[level]
    trials = _trials(objective, prepare, batches, seed, pairs="preference" in objective.needs)
    trials = [with_prepared(objective, batch) for batch in trials]

    on = _ObjectiveProperties(objective, averaged)
    checks = {
        "formula is not empty": lambda _: _formula(objective),
        "reads only what it declares": lambda b: objective(with_prepared(objective, _declared(objective, b))),
        "one number per unit": lambda b: _same_shape(objective(b), b.layout.size(level), level),
        "masked tokens never reach loss or gradient": on.masked_tokens_are_mute,
        "active covers every gradient": on.active_covers,
        "same however it is cut": on.same_when_cut,
        "pieces give the gradient": on.pieces_agree,
        "order of prompts and responses": lambda b: _equivariant(objective, b, level, seed),
        "same result twice, inputs unchanged": lambda b: _pure(objective, b),
    }
    return _run(objective, checks, trials)


@dataclass(frozen=True)
class _ObjectiveProperties:
    """What every objective keeps under its average."""

    objective: Objective
    average: Average

    def weighed(self, batch: Batch) -> Batch:
        level = self.objective.level
        return batch.with_columns(level, _weight=self.average.weights(batch, level))

    def masked_tokens_are_mute(self, batch: Batch) -> None:
        clean = _loss_and_gradient(self.objective, self.weighed(batch))
        dirty = _loss_and_gradient(self.objective, self.weighed(with_prepared(self.objective, infected(batch))))
        for name, a, b in zip(("loss", *_LIVE), clean, dirty, strict=True):
            _all_finite(b, f"{name}, with inf and nan in log-probs off the mask")
            _close(a, b, f"{name} depends on masked tokens")
        if any(bool((g[~batch.mask] != 0).any()) for g in dirty[1:]):
            raise _Failure("masked tokens receive gradient")

    def active_covers(self, batch: Batch) -> None:
        gradients = _loss_and_gradient(self.objective, self.weighed(batch))[1:]
        moved = torch.stack([g != 0 for g in gradients]).any(0)
        missed = int((moved & ~self.objective.active(batch)).sum())
        if missed:
            raise _Failure(f"{missed} tokens receive gradient, but active() leaves them out")

    def same_when_cut(self, batch: Batch) -> None:
        whole = self.weighed(batch)
        expected = _loss_and_gradient(self.objective, whole)
        for budget in (1, 9):
            pieces = list(whole.split_by_tokens(budget, whole_groups=self.objective.level == "prompt"))
            parts = [_loss_and_gradient(self.objective, piece) for piece in pieces]
            total = torch.stack([p[0] for p in parts]).sum()
            _close(expected[0], total, f"loss in {len(parts)} micro-batches")
            for k, name in enumerate(_LIVE, start=1):
                _close(expected[k], torch.cat([p[k] for p in parts]), f"gradient by {name} in micro-batches")

    def pieces_agree(self, batch: Batch) -> None:
        try:
            claimed = self.objective.pieces(batch).gradient
        except NotImplementedError as error:
            raise _Skip("has no pieces()") from error
        level = self.objective.level
        units = batch.with_columns(level, _weight=torch.ones(batch.layout.size(level), dtype=torch.float64))
        actual = _loss_and_gradient(self.objective, units)[1]
        _close(torch.where(batch.mask, actual, torch.zeros_like(actual)), claimed, "pieces().gradient")


# -- running ---------------------------------------------------------------------------------------
def _trials(part: Part, prepare: Prepare | None, batches: int, seed: int, pairs: bool) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    trials = []
    for _ in range(batches):
        batch = random_batch(generator, pairs=pairs)
        batch = prepare(batch, generator) if prepare else batch
        for signal in part.signals:
            if isinstance(signal, Derived) and not all(batch.has(name) for name in signal.adds):
                batch = with_signal(batch, signal)
        lacking = [n for n in part.needs if not batch.has(n)]
        if lacking:
            raise ConfigError(
                f"{type(part).__name__} needs {', '.join(lacking)}, which the checker cannot make up; "
                "give prepare=, a function (batch, generator) -> batch that adds it"
            )
        trials.append(batch)
    return trials


def _run(part: Part, checks: Mapping[str, Callable[[Batch], Any]], trials: list[Batch]) -> CheckReport:
    report = CheckReport(repr(part), tuple(_find(name, check, trials) for name, check in checks.items()))
    if not report.passed:
        raise CheckFailed(report)
    return report


def _find(name: str, check: Callable[[Batch], Any], trials: list[Batch]) -> Finding:
    for i, batch in enumerate(trials):
        try:
            check(batch)
        except _Skip as reason:
            return Finding(name, "skipped", str(reason))
        except _Failure as failure:
            return Finding(name, "failed", f"{failure} (random batch {i})")
        except Exception as error:  # whatever a stranger's part raises is the finding, and is reported as such
            return Finding(name, "failed", f"raised {type(error).__name__}: {error} (random batch {i})")
    return Finding(name, "ok")


# -- properties ------------------------------------------------------------------------------------
_LIVE = ("logp", "entropy", "divergence", "live_value", "resampled_logp")


def _loss_and_gradient(objective: Objective, batch: Batch) -> tuple[Tensor, ...]:
    """(weighted loss, its gradient by each live column), on fresh leaves."""
    leaves = {name: batch.columns[name].detach().clone().requires_grad_() for name in _LIVE}  # type: ignore[union-attr]
    live = batch.with_columns(None, **leaves)
    values = objective(live)
    weight: Tensor = batch._weight
    loss = (torch.where(weight != 0, values, torch.zeros_like(values)) * weight).sum()
    if not loss.requires_grad:
        return (loss, *(torch.zeros_like(x) for x in leaves.values()))
    given = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    filled = [torch.zeros_like(x) if g is None else g for g, x in zip(given, leaves.values(), strict=True)]
    return (loss.detach(), *filled)


def _formula(part: Part) -> None:
    text = part.formula()
    if not isinstance(text, str) or not text.strip():
        raise _Failure(f"formula() gives {text!r}")


def _declared(part: Part, batch: Batch) -> Batch:
    return batch.without(*(name for name in batch.columns if name not in part.needs))


def _same_shape(value: Tensor, size: int, level: str) -> None:
    if value.shape != (size,):
        raise _Failure(f"level {level!r} has {size} units, the result has shape {tuple(value.shape)}")


def _all_finite(value: Tensor, what: str) -> None:
    if not bool(torch.isfinite(value).all()):
        raise _Failure(f"not finite: {what}")


def _close(expected: Tensor, got: Tensor, what: str) -> None:
    gap = float((expected.double() - got.double()).abs().max()) if expected.numel() else 0.0
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    if not gap <= TOLERANCE * scale:
        raise _Failure(f"{what}: off by {gap:.3g}")


def _equivariant(part: Advantage | Objective, batch: Batch, level: str, seed: int) -> None:
    moved, rows = reordered(batch, torch.Generator().manual_seed(seed))
    if isinstance(part, Objective):
        moved = with_prepared(part, moved)
    _close(part(batch)[rows[level]].detach(), part(moved).detach(), "reordering the batch changes values")


def _pure(part: Advantage | Objective, batch: Batch) -> None:
    before = {k: v.detach().clone() if isinstance(v, Tensor) else list(v) for k, v in batch.columns.items()}
    states = {key: dict(state) for key, state in batch.states.items()}
    held = replace(batch, states=states)
    first, second = part(held), part(held)
    if not torch.equal(first, second):
        raise _Failure("two calls on one batch differ")
    for name, value in batch.columns.items():
        then = before[name]
        if isinstance(value, Tensor) and isinstance(then, Tensor):
            same = torch.allclose(value, then, rtol=0, atol=0, equal_nan=True)
        else:
            same = value == then
        if not same:
            raise _Failure(f"changes column {name!r} in place")
