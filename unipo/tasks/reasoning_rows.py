"""Drawing rows from reasoning-gym: by name, without repeats, and the same in every process.

Some of its datasets walk over Python sets, whose order changes with the hash seed of the process, or draw from
or reseed a global generator: a resumed run would have other prompts, or its own numbers disturbed.  These are
drawn in a child process with the hash seed 0 and the global generators of `random` and `numpy` seeded.
Source: open-thought/reasoning-gym (Stojanovski et al. 2025, arXiv 2505.24760).
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unipo.errors import ConfigError, DataError, MissingExtra, unknown

Row = dict[str, Any]

# Found by drawing forty items of every dataset of reasoning-gym 0.1.25 (six of futoshiki and of knight_swap, which
# are slow) under two or three hash seeds, and by reading where it uses global generators.
# Unsure: a dependence rarer than one item in forty would not have been seen.
PROCESS_DEPENDENT = frozenset(
    {
        *("codeio", "intermediate_integration", "isomorphic_strings", "knight_swap", "list_functions"),
        *("polynomial_multiplication", "pool_matrix", "ransom_note", "word_ladder"),
    }
)
# Their scorers tell tuples from lists, so their entries do not survive being written as JSON.
_NOT_FROM_JSON = frozenset({"arc_agi", "rearc"})
_TRIES_PER_ITEM = 20
_TRAIN_SEED_OFFSET = 1 << 24


def reasoning_gym_names() -> tuple[str, ...]:
    """Names of all datasets the installed reasoning-gym has."""
    return tuple(sorted(_factory().DATASETS))


def _factory() -> Any:
    try:
        import reasoning_gym  # noqa: F401  (importing it registers its datasets)
        from reasoning_gym import factory
    except ImportError as error:
        raise MissingExtra("reasoning-gym", "tasks", "a reasoning-gym task") from error
    return factory


def make_dataset(name: str, seed: int, size: int, config: Mapping[str, Any]) -> Any:
    """A reasoning-gym dataset; ConfigError for a name, option or value it does not know.

    For "composite", config["datasets"] is a list of mappings {"name", "weight", "config"}.
    """
    factory = _factory()
    if name not in factory.DATASETS:
        raise unknown("reasoning-gym dataset", name, factory.DATASETS)
    options = {f.name for f in dataclasses.fields(factory.DATASETS[name][1])} - {"seed", "size"}
    for option in config:
        if option not in options:
            raise unknown(f"option of reasoning-gym's {name}", option, options)
    settings = dict(config)
    try:
        if name == "composite" and settings.get("datasets"):
            from reasoning_gym.composite import DatasetSpec

            settings["datasets"] = [DatasetSpec(**spec) for spec in settings["datasets"]]
        return factory.create_dataset(name, seed=seed, size=size, **settings)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"reasoning-gym's {name} refuses {dict(config)}: {error}") from error


def is_process_dependent(name: str, config: Mapping[str, Any]) -> bool:
    """Whether the items of this dataset are the same only when drawn in a child process of known state."""
    names = {spec["name"] for spec in config["datasets"]} if name == "composite" else {name}
    if names & PROCESS_DEPENDENT and names & _NOT_FROM_JSON:
        both = sorted(names & PROCESS_DEPENDENT), sorted(names & _NOT_FROM_JSON)
        raise ConfigError(f"one composite cannot hold both {both[0]} and {both[1]}: make two tasks")
    return bool(names & PROCESS_DEPENDENT)


def draw_rows(name: str, config: Mapping[str, Any], seed: int, size: int, heldout: int) -> tuple[list[Row], list[Row]]:
    """(held-out rows, training rows), all questions distinct; JSON-able.

    A row has question, answer and metadata, and dataset, seed, index and size, which say how to make it again.
    Item i of a dataset is drawn from seed + i: held-out and training rows take disjoint ranges of seeds.
    An item that the generator fails to make is left out with a warning.
    Raises ConfigError: unknown names or options, or fewer distinct questions than asked for.
    """
    make_dataset(name, seed, 1, config)
    if max(size, heldout) * _TRIES_PER_ITEM > _TRAIN_SEED_OFFSET:
        raise ConfigError(f"at most {_TRAIN_SEED_OFFSET // _TRIES_PER_ITEM} questions can be asked for, got {size}")
    if is_process_dependent(name, config):
        return _draw_in_child(name, config, seed, size, heldout)
    return _draw_both(name, config, seed, size, heldout)


def _draw_both(name: str, config: Mapping[str, Any], seed: int, size: int, heldout: int) -> tuple[list[Row], list[Row]]:
    seen: set[str] = set()
    held = list(_draw(name, config, seed, heldout, seen))
    return held, list(_draw(name, config, seed + _TRAIN_SEED_OFFSET, size, seen))


def _draw(name: str, config: Mapping[str, Any], seed: int, count: int, seen: set[str]) -> Iterator[Row]:
    """`count` rows with questions not in `seen`, which grows.

    Asking for more keeps the first ones, but for the datasets (such as acre) whose items depend on their number.
    """
    if count == 0:
        return
    tries, made = count * _TRIES_PER_ITEM, 0
    dataset = make_dataset(name, seed, tries, config)
    failed: list[str] = []
    for index in range(tries):
        try:
            entry = dataset[index]
        except Exception as error:  # a generator that trips over its own numbers: the next item takes the place
            failed.append(f"item {index}: {type(error).__name__}: {error}")
            continue
        row = _as_row(entry, index, name)
        if row["question"] in seen:
            continue
        seen.add(row["question"])
        yield {**row, "dataset": name, "seed": seed, "index": index, "size": tries}
        made += 1
        if made == count:
            if failed:
                warnings.warn(f"reasoning-gym's {name} failed to make {len(failed)} items ({failed[0]})", stacklevel=2)
            return
    raise ConfigError(
        f"reasoning-gym's {name} gave only {made} questions that were not held out or seen before in {tries} draws, "
        f"{count} were asked for: ask for fewer, or make it harder" + (f" ({failed[-1]})" if failed else "")
    )


def _as_row(entry: Mapping[str, Any], index: int, name: str) -> Row:
    """question, answer and metadata as they are after a journey through JSON."""
    try:
        row: Row = json.loads(json.dumps({key: entry.get(key) for key in ("question", "answer", "metadata")}))
    except (TypeError, ValueError) as error:
        raise DataError(f"item {index} of reasoning-gym's {name} cannot be kept as JSON: {error}") from error
    return row


# -- the child process ---------------------------------------------------------------------------
def _draw_in_child(
    name: str, config: Mapping[str, Any], seed: int, size: int, heldout: int
) -> tuple[list[Row], list[Row]]:
    request = json.dumps({"name": name, "config": dict(config), "seed": seed, "size": size, "heldout": heldout})
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    child = subprocess.run(
        [sys.executable, "-m", "unipo.tasks.reasoning_rows"],
        input=request,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": path},
        check=False,
    )
    if child.returncode != 0:
        raise DataError(f"drawing {name} in a child process failed: {child.stderr.strip()[-500:]}")
    # The datasets may print while they work; the reply is the last line.
    reply = json.loads(child.stdout.strip().splitlines()[-1])
    if "error" in reply:
        raise ConfigError(reply["error"])
    return reply["heldout"], reply["train"]


def _main() -> None:
    request = json.loads(sys.stdin.read())
    random.seed(request["seed"])
    _factory()
    import numpy  # reasoning-gym brings it, and some of its datasets draw from its global generator

    numpy.random.seed(request["seed"] % 2**32)
    try:
        held, train = _draw_both(**request)
        reply: dict[str, Any] = {"heldout": held, "train": train}
    except ConfigError as error:
        reply = {"error": str(error)}
    print("\n" + json.dumps(reply))


if __name__ == "__main__":
    _main()
