"""Rewards by name: what a user writes on the command line or in a file, turned into a reward.

A spec is a weighted sum of terms:

    spec  = ["-"] term (("+" | "-") term)*
    term  = [weight "*"] name [":" settings]
    name  = a reward of BUILTIN, or path/to/file.py:function, or package.module:function
    settings = value or key=value, separated by commas, in the order shown in BUILTIN

    maths                                  numbers:where=hash,tolerance=0.01
    0.9*maths + 0.1*format:r1              maths + overlong:2048,512
    kimi:reward=maths,weight=0.5           rewards.py:score - 0.01*rewards.py:words

A "-" between terms needs white space around it, or a number and "*" after it, so that file names may hold
dashes; a file name that holds a "+" must be passed as a function.  The first term gives the task's own score.
A penalty (overlong, repetition) is <= 0 already and is added, not subtracted.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from unipo.errors import ConfigError, unknown
from unipo.rewards.choices import Choices
from unipo.rewards.combine import Gate, WeightedSum
from unipo.rewards.exact import ExactMatch
from unipo.rewards.exploration import AdaptiveExploration
from unipo.rewards.format import Format
from unipo.rewards.function import FunctionReward, load_object
from unipo.rewards.length import Cosine, KimiLength, Repetition, SoftOverlong
from unipo.rewards.maths import Maths
from unipo.rewards.numbers import NumberMatch
from unipo.rewards.unlabelled import Unlabelled
from unipo.tasks.task import Reward

RewardSpec = str | Callable[..., Any] | Reward | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Builtin:
    """A reward with a name: its class, the settings that may be given without their key, and what it is."""

    make: Callable[..., Any]
    positional: tuple[str, ...]
    summary: str


BUILTIN: Mapping[str, Builtin] = {
    "exact": Builtin(ExactMatch, (), "the response is the answer to the letter"),
    "numbers": Builtin(NumberMatch, ("where",), "the number of the response is the answer's number"),
    "maths": Builtin(Maths, (), "the response's final answer equals the answer mathematically (needs math-verify)"),
    "format": Builtin(Format, ("kind",), "the response has a form: r1, think, answer, boxed, tags"),
    "overlong": Builtin(SoftOverlong, ("limit", "cache"), "DAPO's soft overlong punishment, in [-1, 0]"),
    "repetition": Builtin(Repetition, ("n", "penalty"), "n-gram repetition penalty, <= 0"),
    "cosine": Builtin(Cosine, ("reward", "limit"), "another reward, replaced by one that depends on length"),
    "kimi": Builtin(KimiLength, ("reward", "weight"), "another reward plus Kimi's length reward within the group"),
    "choices": Builtin(Choices, (), "share of the right options named, 0 with any wrong one"),
    "exploration": Builtin(AdaptiveExploration, ("field",), "ranked points against a box, paid by how few were needed"),
    "unlabelled": Builtin(
        Unlabelled, ("find",), "always 0; extracts the answer (tagged, boxed, numbers) for methods without labels"
    ),
    "gate": Builtin(Gate, ("reward", "gate", "otherwise"), "another reward, where a format reward is 1"),
}

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_JOINT = re.compile(rf"\s+([+-])\s+|\s*(?<!\d[eE])(\+)\s*|\s*(?<!\d[eE])(-)(?=\s*{_NUMBER}\s*\*)")
_TERM = re.compile(rf"\s*(?:({_NUMBER})\s*\*\s*)?(\S.*?)\s*", re.DOTALL)


def resolve_reward(spec: RewardSpec, *, main: str = "") -> Reward:
    """Make a reward of what a user gave.

    A string: the grammar above.  A Reward: itself.  A callable: `FunctionReward` around it.  A list: the sum
    of its members, each a spec or a (spec, weight) pair.  A dict: spec string -> weight.
    main: name of the term that gives the task's own score (default: the first).
    Raises ConfigError for names nobody knows (with the nearest), bad settings and clashing names.
    """
    terms = _terms(spec)
    if len(terms) == 1 and terms[0][1] == 1.0:
        if main and main != terms[0][0].name:
            raise unknown("main term of a reward", main, [terms[0][0].name])
        return terms[0][0]
    return WeightedSum(tuple(term for term, _ in terms), tuple(weight for _, weight in terms), main=main)


def with_failure_policy(reward: Reward, on_error: str) -> Reward:
    """The same reward with `on_error` ("stop" or "skip") in it and in every reward it is made of, where they have one."""
    if not dataclasses.is_dataclass(reward) or isinstance(reward, type):
        return reward
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(reward):
        value = getattr(reward, field.name)
        if not field.init:
            continue
        if field.name == "on_error":
            changes[field.name] = on_error
        elif isinstance(value, Reward) and not isinstance(value, type):
            changes[field.name] = with_failure_policy(value, on_error)
        elif isinstance(value, tuple) and value and all(isinstance(v, Reward) for v in value):
            changes[field.name] = tuple(with_failure_policy(v, on_error) for v in value)
    return cast(Reward, dataclasses.replace(reward, **changes)) if changes else reward


def _terms(spec: RewardSpec) -> list[tuple[Reward, float]]:
    if isinstance(spec, str):
        return [(_one(text), weight) for weight, text in split_spec(spec)]
    if isinstance(spec, Mapping):
        return [(_single(key), weight) for key, weight in spec.items()]
    if isinstance(spec, type):
        raise ConfigError(f"{spec.__name__} is a class; pass one of its instances, e.g. {spec.__name__}(...)")
    if isinstance(spec, Reward):
        return [(spec, 1.0)]
    if isinstance(spec, Sequence):
        pairs = [item if isinstance(item, tuple) and len(item) == 2 else (item, 1.0) for item in spec]
        if not pairs:
            raise ConfigError("an empty list of rewards scores nothing")
        return [(_single(item), weight) for item, weight in pairs]
    if callable(spec):
        return [(FunctionReward(spec), 1.0)]
    raise ConfigError(f"a reward is a name, a function, a Reward, or a list or dict of these, got {spec!r:.200}")


def _single(spec: Any) -> Reward:
    return resolve_reward(cast(RewardSpec, spec))


def split_spec(spec: str) -> list[tuple[float, str]]:
    """Split "maths + 0.1*format:r1" into [(1.0, "maths"), (0.1, "format:r1")]. Raises ConfigError if a term is empty."""
    text = spec.strip()
    sign = -1.0 if text.startswith("-") else 1.0
    pieces = _JOINT.split(text[1:] if text[:1] in ("+", "-") else text)
    terms = [(sign, pieces[0])]
    for i in range(1, len(pieces), 4):
        joint = next(mark for mark in pieces[i : i + 3] if mark)
        terms.append((-1.0 if joint == "-" else 1.0, pieces[i + 3]))
    result = []
    for direction, term in terms:
        match = _TERM.fullmatch(term)
        if match is None:
            raise ConfigError(f"the reward {spec!r} has an empty term; write e.g. 0.9*maths + 0.1*format:r1")
        result.append((direction * float(match[1] or 1.0), match[2]))
    return result


def _one(term: str) -> Reward:
    name, _, settings = term.partition(":")
    if name in BUILTIN:
        return _make(name, settings)
    if name.endswith(".py") or (settings and "." in name and "/" not in name):
        found = load_object(term)
        if isinstance(found, Reward) and not isinstance(found, type):
            return found
        return FunctionReward(term)
    raise unknown("reward", name, [*BUILTIN, "path/to/file.py:function"])


def _make(name: str, settings: str) -> Reward:
    builtin = BUILTIN[name]
    fields = {field.name: field for field in dataclasses.fields(builtin.make)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for place, piece in enumerate(piece for piece in settings.split(",") if piece.strip()):
        key, equals, value = (part.strip() for part in piece.partition("="))
        if not equals:
            if place >= len(builtin.positional):
                raise ConfigError(
                    f"reward {name!r}: {piece.strip()!r} needs its key, as key=value; keys: {', '.join(fields)}"
                )
            key, value = builtin.positional[place], key
        if key not in fields:
            raise unknown(f"setting of reward {name!r}", key, fields)
        if key in given:
            raise ConfigError(f"reward {name!r}: {key} is given twice")
        given[key] = _one(value) if key in ("reward", "gate") else _value(name, key, value, str(fields[key].type))
    lacking = [key for key, field in fields.items() if field.default is dataclasses.MISSING and key not in given]
    if lacking:
        example = ",".join(f"{key}=..." for key in lacking)
        raise ConfigError(f"reward {name!r} needs {' and '.join(lacking)}: write {name}:{example}")
    try:
        return cast(Reward, builtin.make(**given))
    except TypeError as error:
        raise ConfigError(f"reward {name!r} cannot be made with the settings {settings!r}: {error}") from error


def _value(name: str, key: str, text: str, kind: str) -> Any:
    """A setting as the type its field is annotated with."""
    if kind.endswith("| None") and text.lower() == "none":
        return None
    readers: dict[str, Callable[[str], Any]] = {
        "bool": lambda word: {"true": True, "false": False}[word.lower()],
        "int": int,
        "float": float,
        "tuple[float, float]": _refuse,
    }
    try:
        return readers.get(kind.removesuffix(" | None"), str)(text)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"reward {name!r}: {key}={text!r} is not of the kind {kind}") from error


def _refuse(text: str) -> Any:
    raise ConfigError(f"{text!r}: a pair of numbers cannot be written in a reward's name; make this reward in Python")
