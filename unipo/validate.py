"""Whether a composition of parts can work: whoever reads a column comes after whoever makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unipo.columns import COLUMNS, STAGES
from unipo.errors import ConfigError
from unipo.parts.average import GroupMean, SequenceMean
from unipo.parts.part import Part, Selection

if TYPE_CHECKING:
    from unipo.method import Method, Term

# The last stage whose columns the parts of a field may read.
_FIELD_STAGE = {
    "curriculum": "reward",
    "selection": "reward",
    "shaping": "signal",
    "advantage": "signal",
    "credit": "advantage",
    "objective": "forward",
    "regularisers": "forward",
    "extra": "forward",
    "value": "forward",
    "guard": "forward",
}
_LOSSES = ("objective", "regularisers", "extra", "value")
_MADE_BY_JUDGE = frozenset({"mask", "token_reward"})


def validate(method: Method) -> None:
    """Raise ConfigError, naming the part, where a method's parts do not fit together."""
    where = f"method {method.name!r}"
    for name, part in method.parts:
        for need in part.needs:
            _check_column(method, name, part, need)
        if isinstance(part, Selection) and part.late and (method.advantage is None or part.level == "prompt"):
            raise ConfigError(
                f"{where}: {type(part).__name__} selects after credit, so the method needs an advantage and the part "
                "the level sequence or token"
            )
        if part.smallest_group > method.source.group:
            raise ConfigError(
                f"{where}: {type(part).__name__} compares the responses of a group and needs group_size >= "
                f"{part.smallest_group}, got {method.source.group}; use reinforce or reinforce++ for single responses"
            )
    _check_target(where, method)
    prepared: dict[str, str] = {}
    for term in method.terms:
        _check_average(where, term)
        for column in term.objective.prepares:
            other = prepared.setdefault(column, type(term.objective).__name__)
            if other != type(term.objective).__name__ or column in method.needs:
                raise ConfigError(f"{where}: {other} and {type(term.objective).__name__} both make column {column!r}")
    if method.advantage is not None and method.advantage.level != "sequence":
        reader = next((part for _, part in method.parts if "sequence_advantage" in part.needs), None)
        if reader is not None:
            raise ConfigError(
                f"{where}: {type(reader).__name__} needs one advantage per response, and "
                f"{type(method.advantage).__name__} gives one per token"
            )
    if len({d for t in method.terms if (d := t.objective.divergence) is not None}) > 1:
        raise ConfigError(f"{where}: two terms ask for different divergences from the teacher; one pass measures one")
    if len({r for t in method.terms if (r := t.objective.resampled) is not None}) > 1:
        raise ConfigError(f"{where}: its terms draw tokens anew in different ways, and one pass can do one")
    if method.guard is not None and method.guard.objective is not None:
        validate(method.replay)


def _check_target(where: str, method: Method) -> None:
    """The value model must not be taught an end where the advantage sees a response go on."""
    seen, value = getattr(method.advantage, "goes_on", "none"), method.value
    if value is None:
        return
    # Responses that the source goes on writing are not among the finished; those cut off for good are.
    apart = ("unfinished",) if value.finished else ()
    if seen == value.goes_on or {seen, value.goes_on} <= {"none", *apart}:
        return
    instead = ""
    if seen == "unfinished" and value.goes_on == "none":
        instead = ", or value.finished=true to learn from responses that ended alone"
    raise ConfigError(
        f"{where}: the advantage has goes_on={seen!r} and the value model learns with goes_on={value.goes_on!r}; set "
        f"value.goes_on={seen}{instead}"
    )


def _check_column(method: Method, name: str, part: Part, need: str) -> None:
    """Can this part of this field read this column?"""
    where = f"method {method.name!r}: {type(part).__name__}"
    known = COLUMNS.get(need)
    late = isinstance(part, Selection) and part.late
    brought = set(method.source.adds) | set(() if method.curriculum is None else method.curriculum.adds)
    if need in brought:
        return
    makers = [s for s in method.providers() if need in s.adds]
    if any(s.per_step for s in makers) and name in _LOSSES:
        return
    if need in _MADE_BY_JUDGE or any(not s.per_step for s in makers):
        if name not in ("curriculum", "selection") or late:
            return
        raise ConfigError(
            f"{where} ({name}) needs column {need!r}, but {name} comes before any signal is computed; select by what "
            "the source or the rewards give"
        )
    if known is None:
        raise ConfigError(f"{where} needs column {need!r}, which no part provides")
    if known.stage == "forward" and name in _LOSSES:
        return
    limit = STAGES.index("credit" if late else _FIELD_STAGE.get(name, "forward"))
    given = known.stage in ("advantage", "credit")
    if given and method.advantage is not None and limit >= STAGES.index("advantage"):
        return
    hint = f"it exists after the {known.stage} stage"
    if known.stage == "signal":
        hint = "no part of the method provides it"
    if known.stage in ("source", "reward"):
        hint = f"the source {type(method.source).__name__} does not provide it"
    if given:
        hint = "set advantage=..., or use an objective that needs none"
    raise ConfigError(f"{where} ({name}) needs column {need!r}; {hint}")


def _check_average(where: str, term: Term) -> None:
    """Does the average weigh the units that the objective gives?"""
    unit, objective, average = term.objective.level, type(term.objective).__name__, type(term.average).__name__
    if (unit == "prompt") != isinstance(term.average.unwrapped, GroupMean):
        raise ConfigError(
            f"{where}: {objective} gives one loss per {unit}, which {average} does not average; "
            f"use {'GroupMean()' if unit == 'prompt' else 'TokenMean() or SequenceMean()'}"
        )
    if unit == "sequence" and not isinstance(term.average.unwrapped, SequenceMean):
        raise ConfigError(
            f"{where}: {objective} gives one loss per response; {average} would weigh it by its length. "
            "Use SequenceMean()"
        )
