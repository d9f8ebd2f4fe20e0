"""The harness: unipo and its peers on the same work, taking turns in one run (`make bench`; see README.md).

python benchmarks/run.py --shapes short medium --repetitions 7 --contenders unipo trl
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from contenders import HERE, BenchmarkError, Contender, Worker, machine_busy_seconds
from floor import floor_seconds
from report import Row, Samples, as_line, print_table, record, rows_of
from shapes import LEARNING_RATE, SHAPES

CONTENDERS = {
    one.name: one
    for one in (
        Contender("unipo", "unipo_worker.py", ("step", "generate"), memory=True),
        Contender("trl", "peer_trl.py", ("step",), memory=True, environment="trl"),
        # TRL four sequences at a time: the same gradient, hardly slower, far less memory. Only its memory is asked.
        Contender("trl-micro", "peer_trl.py", (), memory=True, environment="trl", options={"micro_batch": 4}),
        Contender("transformers", "peer_generate.py", ("generate",)),
        Contender("vllm", "peer_vllm.py", ("generate",), environment="vllm"),
        Contender("products", "products.py", ("step",)),
        Contender("floor", "floor.py", ("rate",)),
    )
}
# What a reply's number is called in the results. A generation outside a step is its own metric: inside a step unipo
# also keeps what the update needs.
METRIC = {
    ("step", "step_s"): "step_s",
    ("step", "generation_s"): "generation_s",
    ("step", "update_s"): "update_s",
    ("generate", "generation_s"): "generate_alone_s",
    ("rate", "rate"): "rate",
}
MEMORY_STEPS = 2
# A turn lasts this long, or one command if that takes longer. Work of a tenth of a second would otherwise be measured
# with the caches and the clock as the contender before has left them, which no training run sees.
TURN_SECONDS = 1.5
ATTEMPTS_PER_REPETITION = 20
BUSY_WARNING = 0.1


@dataclass(frozen=True)
class Plan:
    """One run: which contenders do which shapes, how often, in what number type."""

    contenders: tuple[Contender, ...]
    shapes: tuple[str, ...]
    repetitions: int
    dtype: str
    threads: int
    learning_rate: float
    memory: bool
    quiet: float | None


@dataclass
class Measured:
    """What one shape gave: the samples, the contenders' versions, and how busy the machine was with other things."""

    samples: Samples = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    elsewhere: list[float] = field(default_factory=list)
    discarded: int = 0


def setup_command(plan: Plan, shape: str, model_dir: Path, contender: Contender) -> dict[str, Any]:
    """The `setup` message of the protocol."""
    return {
        "cmd": "setup",
        "shape": shape,
        "dtype": plan.dtype,
        "model_dir": str(model_dir),
        "threads": plan.threads,
        "lr": plan.learning_rate,
        "options": contender.options,
    }


@contextmanager
def started(plan: Plan, shape: str, model_dir: Path, contender: Contender) -> Iterator[tuple[Worker, dict[str, Any]]]:
    """A worker that has done its setup, closed at the end whatever happens."""
    worker = Worker(contender, plan.threads)
    try:
        yield worker, worker.ask(**setup_command(plan, shape, model_dir, contender))
    finally:
        worker.close()


def timed(worker: Worker, command: str) -> tuple[dict[str, float], float]:
    """One turn: medians of a command's numbers, the first repetition left out if there are several.

    Also the share of the machine that other processes used meanwhile (0 if unknown).
    """
    machine, own = machine_busy_seconds(), worker.cpu_seconds()
    replies, start = [], time.perf_counter()
    while not replies or time.perf_counter() - start < TURN_SECONDS:
        replies.append(worker.ask(cmd=command))
    replies = replies[1:] or replies
    machine_after, own_after = machine_busy_seconds(), worker.cpu_seconds()
    numbers = {
        METRIC[command, key]: median(float(reply[key]) for reply in replies)
        for key in replies[0]
        if (command, key) in METRIC
    }
    if machine is None or machine_after is None or own is None or own_after is None:
        return numbers, 0.0
    busy = machine_after - machine
    return numbers, max(0.0, busy - (own_after - own)) / busy if busy > 0 else 0.0


def one_round(workers: list[Worker], command: str) -> tuple[dict[str, dict[str, float]], float]:
    """The command once for each worker that knows it, one after the other; the greatest share used elsewhere."""
    replies, elsewhere = {}, 0.0
    for worker in workers:
        if command in worker.contender.commands:
            worker.go_on()
            replies[worker.contender.name], share = timed(worker, command)
            elsewhere = max(elsewhere, share)
            worker.pause()
    return replies, elsewhere


def measure_times(plan: Plan, shape: str, workers: list[Worker], measured: Measured) -> None:
    """Warm up once, then `repetitions` rounds of each command, A B A B.

    With `quiet` set, a round during which other processes used more than that share of the processor time is
    measured again. The test looks at the machine, never at the result, and applies to the whole round.
    """
    collected: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for command in ("step", "generate", "rate"):
        one_round(workers, command)
        kept = attempts = 0
        while kept < plan.repetitions:
            attempts += 1
            if attempts > ATTEMPTS_PER_REPETITION * plan.repetitions:
                raise BenchmarkError(
                    f"shape {shape}: the machine was never quiet long enough ({kept} of {plan.repetitions} rounds of "
                    f"{command!r} in {attempts - 1} attempts); stop other work or raise --quiet"
                )
            replies, elsewhere = one_round(workers, command)
            if plan.quiet is not None and elsewhere > plan.quiet:
                measured.discarded += 1
                continue
            kept += 1
            measured.elsewhere.append(elsewhere)
            for name, numbers in replies.items():
                for metric, value in numbers.items():
                    collected[name][metric].append(value)
    measured.samples = {name: dict(metrics) for name, metrics in collected.items()}


def measure_memory(plan: Plan, shape: str, model_dir: Path, measured: Measured) -> None:
    """Peak memory of each training contender in a fresh process that takes two steps and nothing else."""
    for contender in plan.contenders:
        if contender.memory:
            with started(plan, shape, model_dir, contender) as (worker, _):
                for _step in range(MEMORY_STEPS):
                    worker.ask(cmd="step")
                memory = worker.ask(cmd="memory")
            metrics = measured.samples.setdefault(contender.name, {})
            metrics["peak_mb"] = [memory["peak_mb"]]
            metrics["peak_above_imports_mb"] = [memory["peak_mb"] - memory["imports_mb"]]


def measure(plan: Plan, shape: str, model_dir: Path) -> Measured:
    """All of one shape: set the contenders up, let them take turns, then the memory."""
    measured = Measured()
    workers: list[Worker] = []
    try:
        for contender in plan.contenders:
            if not contender.commands:
                continue
            say(f"{shape}: setting up {contender.name}")
            workers.append(Worker(contender, plan.threads))
            reply = workers[-1].ask(**setup_command(plan, shape, model_dir, contender))
            measured.facts[contender.name] = {"options": contender.options} | reply
            workers[-1].pause()
        say(f"{shape}: {plan.repetitions} rounds")
        measure_times(plan, shape, workers, measured)
    finally:
        for worker in workers:
            worker.close()
    if plan.memory:
        say(f"{shape}: memory")
        measure_memory(plan, shape, model_dir, measured)
    return measured


def rows_and_facts(plan: Plan, shape: str, measured: Measured) -> tuple[list[Row], dict[str, Any]]:
    """The comparisons of a shape, and a line of what lay behind them."""
    rates = measured.samples.pop("floor", {}).get("rate")
    # The floor is a lower bound, so it takes the best rate that the machine showed in this run.
    floor = floor_seconds(SHAPES[shape], max(rates)) if rates else None
    facts = {
        "shape": shape,
        "contenders": measured.facts,
        "flops_per_second": max(rates) if rates else None,
        "busy_elsewhere": max(measured.elsewhere, default=0.0),
        "rounds_discarded": measured.discarded,
        "samples": measured.samples,
    }
    return rows_of(shape, plan.dtype, measured.samples, floor), facts


def run(plan: Plan, results: Path) -> None:
    """Every shape of the plan: JSON lines as they come, then the table and the record."""
    lines: list[dict[str, Any]] = []
    every: list[Row] = []
    for shape in plan.shapes:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            # In a process of its own, so that the harness stays free of torch and small.
            subprocess.run([sys.executable, str(HERE / "shapes.py"), shape, folder], check=True, capture_output=True)
            rows, facts = rows_and_facts(plan, shape, measure(plan, shape, Path(folder)))
        for row in rows:
            print(json.dumps(as_line(row)), flush=True)
        if facts["busy_elsewhere"] > BUSY_WARNING:
            say(f"{shape}: other processes used up to {facts['busy_elsewhere']:.0%} of the busy processor time")
        every += rows
        lines += [facts, *map(as_line, rows)]
    print_table(every)
    head = {"dtype": plan.dtype, "threads": plan.threads, "repetitions": plan.repetitions, "quiet": plan.quiet}
    say(f"recorded in {record(results, head, lines)}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(arguments: list[str]) -> tuple[Plan, Path]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--lr", type=float, default=LEARNING_RATE, help="AdamW learning rate, the same for all")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--quiet", type=float, help="measure a round again if others used more than this share of CPU")
    parser.add_argument("--python-trl", default=os.environ.get("UNIPO_BENCH_TRL_PYTHON", ""))
    parser.add_argument("--python-vllm", default=os.environ.get("UNIPO_BENCH_VLLM_PYTHON", ""))
    parser.add_argument(
        "--options", nargs="*", default=[], metavar="CONTENDER=JSON", help="settings passed to a contender as they are"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results")
    given = parser.parse_args(arguments)
    pythons = {"trl": given.python_trl, "vllm": given.python_vllm}
    options = dict(pair.split("=", 1) for pair in given.options)
    chosen = tuple(
        replace(
            CONTENDERS[name],
            python=pythons.get(CONTENDERS[name].environment, sys.executable),
            options=CONTENDERS[name].options | json.loads(options.pop(name, "{}")),
        ).checked()
        for name in given.contenders
    )
    if options:
        parser.error(f"--options for {', '.join(map(shlex.quote, options))}, which is not among --contenders")
    if given.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    plan = Plan(
        contenders=chosen,
        shapes=tuple(given.shapes),
        repetitions=given.repetitions,
        dtype=given.dtype,
        threads=given.threads,
        learning_rate=given.lr,
        memory=not given.no_memory,
        quiet=given.quiet,
    )
    return plan, given.results


def main() -> None:
    try:
        run(*parse(sys.argv[1:]))
    except BenchmarkError as error:
        sys.exit(f"benchmark: {error}")


if __name__ == "__main__":
    main()
