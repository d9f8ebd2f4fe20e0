"""A method is a composition of parts that knows its paper.

`Method.but` derives one method from another and remembers the parent, so that `diff` shows exactly what a
paper changed.  A composition is checked when it is made: a part whose columns nobody provides is an error
before any model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from unipo.columns import COLUMNS, STAGES
from unipo.errors import ConfigError, unknown
from unipo.parts.average import Average, ConstantNormaliser, GroupMean, SequenceMean, TokenMean
from unipo.parts.part import Advantage, Credit, Objective, Part, Regulariser, Resampled, Selection, Shaping, Signal
from unipo.parts.shaping import SoftOverlong
from unipo.parts.source import Source
from unipo.signals import DEFAULT_SIGNALS


@dataclass(frozen=True)
class Paper:
    """Where a method comes from. arxiv: identifier or '' if there is none."""

    title: str
    arxiv: str = ""
    code: str = ""


@dataclass(frozen=True)
class Term:
    """One addend of the loss: coefficient * sum_u weight_u objective_u."""

    objective: Objective
    average: Average
    coefficient: float = 1.0


@dataclass(frozen=True)
class Change:
    """One difference between two methods: dotted path, value before, value after."""

    path: str
    before: Any
    after: Any


# A stage's columns come from these fields, in this order; a part may read what earlier stages made.
_FIELD_STAGE = {
    "selection": "reward",
    "shaping": "signal",
    "advantage": "signal",
    "credit": "advantage",
    "objective": "forward",
    "regularisers": "forward",
    "extra": "forward",
}


@dataclass(frozen=True)
class Method:
    """A named composition.

    selection, shaping, credit, regularisers, extra run in the order given.  average applies to the objective
    and the regularisers; `extra` are further terms with averages of their own.  defaults: training settings the
    source recommends (learning_rate, ...), used unless the user sets them.  notes: numbered implementation
    details; doubts: what the sources leave open.
    """

    name: str
    paper: Paper
    source: Source
    objective: Objective
    average: Average
    summary: str = ""
    selection: tuple[Selection, ...] = ()
    shaping: tuple[Shaping, ...] = ()
    advantage: Advantage | None = None
    credit: tuple[Credit, ...] = ()
    regularisers: tuple[Regulariser, ...] = ()
    extra: tuple[Term, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    parent: str | None = None

    def __post_init__(self) -> None:
        _validate(self)

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
            for inherited in ("aliases", "notes", "doubts"):
                plain.setdefault(inherited, ())
        return replace(self, **plain)

    # -- what a run asks of it -------------------------------------------------------------------
    @property
    def online(self) -> bool:
        return self.source.online

    @property
    def terms(self) -> tuple[Term, ...]:
        """All addends of the loss with non-zero coefficient."""
        main = (Term(self.objective, self.average),)
        regular = tuple(Term(r, self._average_of(r), r.coefficient) for r in self.regularisers if r.coefficient)
        return main + regular + tuple(t for t in self.extra if t.coefficient)

    def _average_of(self, part: Objective) -> Average:
        return TokenMean() if isinstance(self.average, GroupMean) and part.level != "prompt" else self.average

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
            provider = next((s for s in self._providers() if column in s.adds), None)
            if provider is None or provider in chosen:
                return
            for need in provider.needs:
                require(need)
            if provider not in chosen:
                chosen.append(provider)

        for column in sorted(self.needs):
            require(column)
        return tuple(chosen)

    def _providers(self) -> Iterator[Signal]:
        for _, part in self.parts:
            yield from part.signals
        yield from DEFAULT_SIGNALS

    @property
    def resampled(self) -> Resampled | None:
        """What the pass with gradient draws anew at every position, if some term asks for it."""
        return next((t.objective.resampled for t in self.terms if t.objective.resampled is not None), None)

    def needs_reference(self) -> bool:
        return any("reference_logp" in s.adds for s in self.signals)

    def bound_to(self, max_tokens: int) -> Method:
        """With lengths left open by the composition (0) filled in from the run's generation budget."""
        changes: dict[str, Any] = {}
        average = _bound(self.average, max_tokens)
        if average != self.average:
            changes["average"] = average
        extra = tuple(replace(t, average=_bound(t.average, max_tokens)) for t in self.extra)
        if extra != self.extra:
            changes["extra"] = extra
        if any(isinstance(s, SoftOverlong) and not s.limit for s in self.shaping):
            changes["shaping"] = tuple(
                replace(s, limit=max_tokens) if isinstance(s, SoftOverlong) and not s.limit else s for s in self.shaping
            )
        return replace(self, **changes) if changes else self

    def explain(self) -> str:
        """The exact formula of every stage with this composition's settings, one line each."""
        rows = [("sample", self.source.formula())]
        rows += [(name, part.formula()) for name, part in self.parts if name in ("selection", "shaping", "advantage")]
        rows += [("signal", s.formula()) for s in self.signals]
        rows += [(name, part.formula()) for name, part in self.parts if name == "credit"]
        rows += [("loss", self.objective.formula())]
        for r in (r for r in self.regularisers if r.coefficient):
            own = self._average_of(r)
            rows += [("regulariser", r.formula() + ("" if own == self.average else f";  {own.formula()}"))]
        rows += [
            ("extra loss", f"+ {t.coefficient:g} * {t.objective.formula()}; {t.average.formula()}")
            for t in self.extra
            if t.coefficient
        ]
        rows += [("average", self.average.formula() + "   (counted over the whole update batch)")]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _bound(average: Average, max_tokens: int) -> Average:
    """The same average, with a constant that was left open set to the generation budget."""
    left_open = isinstance(average, ConstantNormaliser) and not average.length
    return ConstantNormaliser(length=max_tokens) if left_open else average


def _parts(method: Method) -> Iterator[tuple[str, Part]]:
    yield "source", method.source
    for name in ("selection", "shaping"):
        yield from ((name, part) for part in getattr(method, name))
    if method.advantage is not None:
        yield "advantage", method.advantage
    yield from (("credit", part) for part in method.credit)
    yield "objective", method.objective
    yield "average", method.average
    yield from (("regularisers", part) for part in method.regularisers if part.coefficient)
    for term in (t for t in method.extra if t.coefficient):
        yield "extra", term.objective
        yield "extra", term.average


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


def _validate(method: Method) -> None:
    where = f"method {method.name!r}"
    adds = set(method.source.adds) | {"mask"}
    signal_columns = {c for s in method._providers() if not s.per_step for c in s.adds}
    step_columns = {c for s in method._providers() if s.per_step for c in s.adds}
    for name, part in method.parts:
        limit = STAGES.index(_FIELD_STAGE.get(name, "forward"))
        for need in part.needs:
            known = COLUMNS.get(need)
            if name == "selection" and need not in method.source.adds and (need in signal_columns or need == "mask"):
                raise ConfigError(
                    f"{where}: {type(part).__name__} (selection) needs column {need!r}, but selection comes before "
                    f"any signal is computed; select by what the source or the rewards give"
                )
            if need in adds or need in signal_columns:
                continue
            if need in step_columns and name in ("objective", "regularisers", "extra"):
                continue
            if known is None:
                raise ConfigError(f"{where}: {type(part).__name__} needs column {need!r}, which no part provides")
            if known.stage == "forward" and name in ("objective", "regularisers", "extra"):
                continue
            if (
                known.stage in ("advantage", "credit")
                and method.advantage is not None
                and limit >= STAGES.index("advantage")
            ):
                continue
            hint = f"it exists after the {known.stage} stage"
            if known.stage in ("source", "reward"):
                hint = f"the source {type(method.source).__name__} does not provide it"
            if known.stage in ("advantage", "credit"):
                hint = "set advantage=..., or use an objective that needs none"
            raise ConfigError(f"{where}: {type(part).__name__} ({name}) needs column {need!r}; {hint}")
        if part.smallest_group > method.source.group:
            raise ConfigError(
                f"{where}: {type(part).__name__} compares the responses of a group and needs group_size >= "
                f"{part.smallest_group}, got {method.source.group}; use reinforce or reinforce++ for single responses"
            )
    if len({t.objective.resampled for t in method.terms} - {None}) > 1:
        raise ConfigError(f"{where}: its terms draw tokens anew in different ways, and one pass can do one")
    prepared: dict[str, str] = {}
    for term in method.terms:
        _validate_average(where, term)
        for column in term.objective.prepares:
            other = prepared.setdefault(column, type(term.objective).__name__)
            if other != type(term.objective).__name__ or column in method.needs:
                raise ConfigError(f"{where}: {other} and {type(term.objective).__name__} both make column {column!r}")


def _validate_average(where: str, term: Term) -> None:
    unit, objective, average = term.objective.level, type(term.objective).__name__, type(term.average).__name__
    if (unit == "prompt") != isinstance(term.average, GroupMean):
        raise ConfigError(
            f"{where}: {objective} gives one loss per {unit}, which {average} does not average; "
            f"use {'GroupMean()' if unit == 'prompt' else 'TokenMean() or SequenceMean()'}"
        )
    if unit == "sequence" and not isinstance(term.average, SequenceMean):
        raise ConfigError(
            f"{where}: {objective} gives one loss per response; {average} would weigh it by its length. "
            "Use SequenceMean()"
        )


def diff(before: Method, after: Method) -> list[Change]:
    """What changes from one method to another, setting by setting."""
    changes: list[Change] = []
    for name in (
        "source",
        "selection",
        "shaping",
        "advantage",
        "credit",
        "objective",
        "average",
        "regularisers",
        "extra",
    ):
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
