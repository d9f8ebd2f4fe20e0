"""A method is a composition of parts that knows its paper.

`Method.but` derives one method from another and remembers the parent, so that `diff` shows exactly what a
paper changed.  A composition is checked when it is made: a part whose columns nobody provides is an error
before any model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from unipo.columns import COLUMNS
from unipo.errors import ConfigError, unknown
from unipo.parts.average import Average, GroupMean, TokenMean
from unipo.parts.curriculum import Curriculum
from unipo.parts.guard import Guard
from unipo.parts.part import (
    Advantage,
    Credit,
    Divergence,
    Objective,
    Part,
    Regulariser,
    Resampled,
    Selection,
    Shaping,
    Signal,
)
from unipo.parts.source import Source
from unipo.parts.value import ValueLearning
from unipo.signals import DEFAULT_SIGNALS
from unipo.validate import validate


@dataclass(frozen=True)
class Paper:
    """Where a method comes from. arxiv: identifier or '' if there is none."""

    title: str
    arxiv: str = ""
    code: str = ""


@dataclass(frozen=True)
class Term:
    """One addend of the loss: strength * sum_u weight_u objective_u."""

    objective: Objective
    average: Average
    coefficient: float = 1.0

    @property
    def strength(self) -> float:
        """What the term is multiplied by: `coefficient`, times a regulariser's own."""
        own = self.objective.coefficient if isinstance(self.objective, Regulariser) else 1.0
        return self.coefficient * own


@dataclass(frozen=True)
class Change:
    """One difference between two methods: dotted path, value before, value after."""

    path: str
    before: Any
    after: Any


# The fields of a method that hold parts.
PART_FIELDS = (
    *("curriculum", "source", "selection", "shaping", "advantage", "credit"),
    *("objective", "average", "regularisers", "extra", "value", "guard"),
)


@dataclass(frozen=True)
class Method:
    """A named composition.

    selection, shaping, credit, regularisers, extra run in the order given.  average applies to the objective
    and the regularisers; `extra` are further terms with averages of their own.  curriculum: which prompts come
    next; without one every prompt comes once per pass over the data.  value: a value model is learned beside the
    policy.  guard: may ask for an extra update.
    defaults: training settings the source recommends (learning_rate, ...), used unless the user sets them.  notes:
    numbered implementation details; doubts: what the sources leave open; limits: where it loses.
    """

    name: str
    paper: Paper
    source: Source
    objective: Objective
    average: Average
    summary: str = ""
    curriculum: Curriculum | None = None
    selection: tuple[Selection, ...] = ()
    shaping: tuple[Shaping, ...] = ()
    advantage: Advantage | None = None
    credit: tuple[Credit, ...] = ()
    regularisers: tuple[Regulariser, ...] = ()
    extra: tuple[Term, ...] = ()
    value: ValueLearning | None = None
    guard: Guard | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    parent: str | None = None

    def __post_init__(self) -> None:
        validate(self)

    def but(self, **changes: Any) -> Method:
        """This method with some fields replaced. A new `name` makes this one the parent.

        A dotted path changes one setting of a part: but(**{"objective.high": 0.28}).
        """
        own = {f.name for f in fields(self)}
        plain: dict[str, Any] = {}
        for path, value in changes.items():
            head, _, rest = path.partition(".")
            if head not in own:
                raise unknown("method field", head, own)
            base = plain.get(head, getattr(self, head))
            plain[head] = _changed(base, rest, value, path) if rest else value
        if plain.get("name", self.name) != self.name:
            plain.setdefault("parent", self.name)
            for inherited in ("aliases", "notes", "doubts", "limits"):
                plain.setdefault(inherited, ())
        return replace(self, **plain)

    # -- what a run asks of it -------------------------------------------------------------------
    @property
    def online(self) -> bool:
        """Whether the policy samples what it learns from."""
        return self.source.online

    @property
    def terms(self) -> tuple[Term, ...]:
        """All addends of the loss of non-zero strength."""
        main = (Term(self.objective, self.average),)
        regular = tuple(Term(r, self._average_of(r)) for r in self.regularisers if r.coefficient)
        extra = tuple(t for t in self.extra if t.strength)
        if self.value is not None and self.value.shared:
            extra += (Term(self.value, self.value.average, self.value.coefficient),)
        return main + regular + extra

    @property
    def replay(self) -> Method:
        """The composition of the extra update that the guard asks for: one step, no other terms."""
        guard = self.guard
        objective = self.objective if guard is None or guard.objective is None else guard.objective
        once = replace(self.source, epochs=1, minibatches=1)
        value = None if self.value is None else replace(self.value, shared=False)  # no term of the loss
        return replace(self, source=once, objective=objective, regularisers=(), extra=(), value=value, guard=None)

    def _average_of(self, part: Objective) -> Average:
        return TokenMean() if isinstance(self.average.unwrapped, GroupMean) and part.level != "prompt" else self.average

    @property
    def parts(self) -> tuple[tuple[str, Part], ...]:
        """(field, part) in the order of the stages."""
        return tuple(_parts(self))

    @property
    def needs(self) -> frozenset[str]:
        """Every column some part reads."""
        return frozenset(n for _, part in self.parts for n in part.needs)

    @property
    def signals(self) -> tuple[Signal, ...]:
        """Providers of the signal columns that are needed, each after what it needs itself."""
        chosen: list[Signal] = []
        given = set(self.source.adds)

        def require(column: str) -> None:
            if column in given or (column in COLUMNS and COLUMNS[column].stage not in ("signal", "step")):
                return
            provider = next((s for s in self.providers() if column in s.adds), None)
            if provider is None or provider in chosen:
                return
            for need in provider.needs:
                require(need)
            if provider not in chosen:
                chosen.append(provider)

        for column in sorted(self.needs):
            require(column)
        return tuple(chosen)

    def providers(self) -> Iterator[Signal]:
        """Every signal that some part brings along, then the default ones."""
        for _, part in self.parts:
            yield from part.signals
        yield from DEFAULT_SIGNALS

    @property
    def divergence(self) -> Divergence | None:
        """What the policy's pass measures against a teacher, if some term reads it."""
        return next((d for t in self.terms if (d := t.objective.divergence) is not None), None)

    @property
    def resampled(self) -> Resampled | None:
        """What the pass with gradient draws anew at every position, if some term asks for it."""
        return next((r for t in self.terms if (r := t.objective.resampled) is not None), None)

    def needs_reference(self) -> bool:
        """Whether a frozen reference must be kept and forwarded."""
        if self.divergence is not None and self.divergence.weights == "reference":
            return True
        return any("reference_logp" in s.adds for s in self.signals)

    def bound_to(self, max_tokens: int) -> Method:
        """With lengths left open by the composition (0) filled in from the run's generation budget."""
        changes = {name: _bound(getattr(self, name), max_tokens) for name in PART_FIELDS}
        return replace(self, **changes)

    def explain(self) -> str:
        """The exact formula of every stage with this composition's settings, one line each."""
        rows = [] if self.curriculum is None else [("prompts", self.curriculum.formula())]
        rows += [("sample", self.source.formula())]
        rows += [("selection", s.formula()) for s in self.selection if not s.late]
        rows += [(name, part.formula()) for name, part in self.parts if name in ("shaping", "advantage")]
        rows += [("signal", s.formula()) for s in self.signals]
        rows += [(name, part.formula()) for name, part in self.parts if name == "credit"]
        rows += [("selection", s.formula()) for s in self.selection if s.late]
        rows += [("loss", self.objective.formula())]
        for r in (r for r in self.regularisers if r.coefficient):
            own = self._average_of(r)
            rows += [("regulariser", r.formula() + ("" if own == self.average else f";  {own.formula()}"))]
        rows += [
            ("extra loss", f"+ {t.coefficient:g} * {_bracketed(t.objective)}; {t.average.formula()}")
            for t in self.extra
            if t.strength
        ]
        if self.value is not None:
            rows += [("value", self.value.formula())]
        rows += [("average", self.average.formula() + "   (counted over the whole update batch)")]
        rows += [("guard", self.guard.formula())] if self.guard is not None else []
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _bracketed(objective: Objective) -> str:
    """A formula to be multiplied: a regulariser's begins with a sign and a coefficient of its own."""
    return f"[{objective.formula()}]" if isinstance(objective, Regulariser) else objective.formula()


def _bound(value: Any, max_tokens: int) -> Any:
    """What a field of parts holds, with every length that was left open filled in."""
    if isinstance(value, tuple):
        return tuple(_bound(v, max_tokens) for v in value)
    if isinstance(value, Term):
        return replace(value, objective=_bound(value.objective, max_tokens), average=_bound(value.average, max_tokens))
    return value if value is None else value.bound_to(max_tokens)


def _parts(method: Method) -> Iterator[tuple[str, Part]]:
    if method.curriculum is not None:
        yield "curriculum", method.curriculum
    yield "source", method.source
    for name in ("selection", "shaping"):
        yield from ((name, part) for part in getattr(method, name))
    if method.advantage is not None:
        yield "advantage", method.advantage
    yield from (("credit", part) for part in method.credit)
    yield "objective", method.objective
    yield "average", method.average
    yield from (("regularisers", part) for part in method.regularisers if part.coefficient)
    for term in (t for t in method.extra if t.strength):
        yield "extra", term.objective
        yield "extra", term.average
    if method.value is not None:
        yield "value", method.value
    if method.guard is not None:
        yield "guard", method.guard


def _changed(base: Any, path: str, value: Any, full: str) -> Any:
    """`base` with the setting at a dotted path replaced; tuples are indexed by position or by part name."""
    head, _, rest = path.partition(".")
    if isinstance(base, tuple):
        names = [type(x).__name__ for x in base]
        if head.isdigit() and int(head) < len(base):
            at = int(head)
        elif head in names:
            at = names.index(head)
        else:
            raise unknown(f"part in {full!r}", head, [*names, *map(str, range(len(base)))])
        new = _changed(base[at], rest, value, full) if rest else value
        return (*base[:at], new, *base[at + 1 :])
    if isinstance(base, Mapping):
        return {**base, head: value}
    if not is_dataclass(base):
        raise ConfigError(f"{full!r}: {base!r} has no settings")
    known = [f.name for f in fields(base)]
    if head not in known:
        raise unknown(f"setting of {type(base).__name__}", head, known)
    inner = _changed(getattr(base, head), rest, value, full) if rest else value
    return replace(base, **{head: inner})  # type: ignore[type-var]


def diff(before: Method, after: Method) -> list[Change]:
    """What changes from one method to another, setting by setting."""
    changes: list[Change] = []
    for name in PART_FIELDS:
        changes += _diff_value(name, getattr(before, name), getattr(after, name))
    return changes


def _diff_value(path: str, a: Any, b: Any) -> list[Change]:
    if a == b:
        return []
    if isinstance(a, tuple) and isinstance(b, tuple):
        rows: list[Change] = []
        for i in range(max(len(a), len(b))):
            x, y = (t[i] if i < len(t) else None for t in (a, b))
            rows += _diff_value(f"{path}.{i}" if max(len(a), len(b)) > 1 else path, x, y)
        return rows
    if type(a) is type(b) and is_dataclass(a):
        return [c for f in fields(a) for c in _diff_value(f"{path}.{f.name}", getattr(a, f.name), getattr(b, f.name))]
    return [Change(path, a, b)]
