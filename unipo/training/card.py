"""The model card of a saved model: what it is, how it was made, what it scores, and how to make it again.

Written as README.md with the front matter of the Hugging Face hub. Everything is read from the run directory, so the
card says nothing that was not measured or set in that run. Text that comes from outside (names, paths, settings)
cannot break out of the place it stands in.
"""

from __future__ import annotations

import platform
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from unipo.errors import ConfigError
from unipo.evaluate.record import kept
from unipo.markdown import fenced, inline, paper_link, show, table
from unipo.method import Method, diff
from unipo.registry import get_method
from unipo.starter import shapes_path, starter_path
from unipo.tasks.data import is_hub_id
from unipo.training.checkpoint import CARD
from unipo.training.config import read_mapping
from unipo.training.defaults import SHAPES, STARTER
from unipo.training.rundir import records

# Settings that say where a run lies and what it shows, not what it does.
ELSEWHERE = ("run", "resume", "log")
SHIPPED = {
    STARTER: "The model that is shipped with unipo",
    SHAPES: "The model of images and text that is shipped with unipo",
}
SEEN = ", but for the rows that say (trained on)"
# The event that says with which versions a run was started, or gone on with.
STARTED = "started"


def write_card(model: Path, run: Path, step: int, method: Method) -> Path:
    """Write the card of one saved model of a run. method: as it was run, with its settings."""
    card = model_card(run, step, method, adapter=(model / "adapter_config.json").is_file())
    partial = model / f".{CARD}.partial"
    partial.write_text(card, encoding="utf-8")
    partial.replace(model / CARD)
    return model / CARD


def model_card(run: Path, step: int, method: Method, adapter: bool = False) -> str:
    """The text of the card."""
    config = read_mapping(run / "config.yaml")
    rows = _evaluations(run, step)
    blocks = [
        front_matter(config, method, rows, run.name, adapter),
        f"# {inline(run.name)}",
        f"{_base(config)}, post-trained with {_method_name(method)} for {step} steps on {_task(config)}, with unipo.",
        *_use(adapter),
        *_method(method),
        *_scores(rows),
        *_repeat(config, step),
        *_versions(run, step),
        *_citation(method),
    ]
    return "\n\n".join(blocks) + "\n"


# -- front matter --------------------------------------------------------------------------------
def front_matter(
    config: Mapping[str, Any], method: Method, rows: Sequence[Mapping[str, Any]], name: str, adapter: bool
) -> str:
    """YAML for the hub: library, base model, data, and the last result of each task."""
    data, model = config.get("data", {}), _model(config)
    values: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["unipo", "reinforcement-learning", method.name],
    }
    if is_hub_id(model):
        values["base_model"] = model
    if is_hub_id(str(data.get("data", ""))):
        values["datasets"] = [data["data"].partition(":")[0]]
    # A reader of the hub takes these for problems that the model has not seen.
    fair = [row for row in rows if row["when"] != "before" and row.get("heldout") is not False]
    results = {(row["task"], row["measure"]): row for row in fair}
    if results:
        values["model-index"] = [{"name": name, "results": [_indexed(row) for row in results.values()]}]
    return "---\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True) + "---"


def _indexed(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": row["task"], "type": re.sub(r"[^A-Za-z0-9._/-]+", "-", row["task"]) or "task"},
        "metrics": [{"type": row["measure"], "name": row["measure"], "value": round(row["value"], 6)}],
    }


# -- sections ------------------------------------------------------------------------------------
def _model(config: Mapping[str, Any]) -> str:
    """What was trained; a shipped model under its name, which is the same on every machine."""
    model = str(config.get("policy", {}).get("model", ""))
    return {"": STARTER, str(starter_path()): STARTER, str(shapes_path()): SHAPES}.get(model, model)


def _base(config: Mapping[str, Any]) -> str:
    model = _model(config)
    if model in SHIPPED:
        return SHIPPED[model]
    return inline(model if is_hub_id(model) else Path(model).name)


def _trained_on(config: Mapping[str, Any]) -> str:
    data = config.get("data", {})
    return str(data.get("data") or data.get("task") or "a task made in Python")


def _task(config: Mapping[str, Any]) -> str:
    data = config.get("data", {})
    name = _trained_on(config)
    reward = f", scored by {inline(data['reward'])}" if data.get("reward") else ""
    return inline(name if is_hub_id(name) else Path(name).name) + reward


def _method_name(method: Method) -> str:
    return f"{inline(method.name)} ({inline(method.paper.title)})"


def _use(adapter: bool) -> list[str]:
    kind = "peft", "AutoPeftModelForCausalLM"
    package, cls = kind if adapter else ("transformers", "AutoModelForCausalLM")
    imports = f"from {package} import {cls}\nfrom transformers import AutoTokenizer"
    code = f'{imports}\n\nfolder = "."  # this directory, or the name of its repository\n'
    code += f"model = {cls}.from_pretrained(folder)\ntokenizer = AutoTokenizer.from_pretrained(folder)"
    return ["## Use", fenced(code, "python")]


def _method(method: Method) -> list[str]:
    blocks = ["## Method", method.summary or paper_link(method.paper), "Its formula, with the settings of this run:"]
    blocks.append(fenced(method.explain(), "text"))
    for title, other in _relatives(method):
        changes = diff(other, method)
        if changes:
            rows = [[f"`{c.path}`", inline(show(c.before)), inline(show(c.after))] for c in changes]
            blocks += [title, table(["setting", inline(other.name), "here"], rows)]
    if method.doubts:
        blocks += ["What its sources leave open:", "\n".join(f"- {inline(doubt)}" for doubt in method.doubts)]
    return blocks


def _relatives(method: Method) -> list[tuple[str, Method]]:
    """The catalogue's own entry, where the run changed settings, and the method that this one grew from."""
    found = []
    for name, title in ((method.name, "Changed in this run:"), (method.parent, f"Changed from {method.parent}:")):
        try:
            found.append((title, get_method(name or "")))
        except ConfigError:  # made in Python, without being registered
            continue
    return found


def _scores(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return ["## Evaluation", "None was asked for."]
    lines = [
        [
            inline(row["task"]) + (" (trained on)" if row.get("heldout") is False else ""),
            row["when"],
            inline(row["measure"]),
            _value(row),
            f"{row['problems']} x {row['samples']}",
            "" if row.get("temperature") is None else f"{row['temperature']:g}",
        ]
        for row in rows
    ]
    seen = any(row.get("heldout") is False for row in rows)
    return [
        "## Evaluation",
        f"On held-out problems{SEEN if seen else ''}, with 95 % intervals over new problems.",
        table(["task", "when", "measure", "value", "problems x samples", "temperature"], lines),
    ]


def _evaluations(run: Path, step: int) -> list[dict[str, Any]]:
    """The run's own evaluation before and at this step, then those that `unipo eval` left behind."""
    config = read_mapping(run / "config.yaml")
    task, temperature = _trained_on(config), config.get("eval", {}).get("temperature")
    rows: dict[str, dict[str, Any]] = {}
    for record in records(run / "evaluations.jsonl"):
        if record["when"] == "before" or record["step"] == step:
            when = "before" if record["when"] == "before" else "after"
            own = {k: record[k] for k in ("low", "high", "problems", "samples")}
            named = {"task": Path(task).name, "when": when, "measure": "score", "value": record["accuracy"]}
            rows[when] = {**named, **own, "temperature": temperature}
    return [*rows.values(), *(row for record in kept(run, step) for row in _of_record(record))]


def _of_record(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of one file of RUN/evaluations: the average, and pass@k and maj@k of all k samples."""
    if "harness" in record:
        return list(_of_harness(record))
    k = record["k"]
    data = record.get("data", {})  # tells apart what the task's own name does not, as countdown?numbers=3
    task = data.get("task") or Path(data.get("data") or record["task"]).name
    shown = {"task": task, "when": "after", "problems": record["problems"], "samples": k}
    shown |= {"temperature": record["temperature"], "heldout": record.get("heldout")}
    a = record["accuracy"]
    rows = [{**shown, "measure": f"average@{k}", "value": a["accuracy"], "low": a["low"], "high": a["high"]}]
    for name, label in (("pass", "pass"), ("majority", "maj")):
        if k > 1 and name in record:
            rows.append({**shown, "measure": f"{label}@{k}", **record[name][str(k)]})
    return rows


def _of_harness(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of lm-evaluation-harness, its normal intervals made from its standard errors."""
    for task, metrics in record["results"].items():
        shown = {"task": f"{task} (lm-eval)", "when": "after", "problems": record["samples"].get(task), "samples": 1}
        for metric, n in metrics.items():
            error = n["standard_error"]
            ends = {} if error is None else {"low": n["value"] - 1.96 * error, "high": n["value"] + 1.96 * error}
            yield {**shown, "measure": metric, "value": n["value"], "raw": True, **ends}


def _value(row: Mapping[str, Any]) -> str:
    """Percent, or the harness's own number, which need not be a share."""
    scale, unit, form = (1, "", ".4f") if row.get("raw") else (100, " %", ".1f")
    text = f"{scale * row['value']:{form}}{unit}"
    return text if "low" not in row else f"{text} [{scale * row['low']:{form}}, {scale * row['high']:{form}}]"


def _versions(run: Path, step: int) -> list[str]:
    """Those that the run was started and gone on with, up to this step."""
    starts = [e for e in records(run / "events.jsonl") if e["event"] == STARTED and (e["step"] < step or not e["step"])]
    names = dict.fromkeys(name for e in starts for name in e if name not in ("step", "event"))
    lines = [f"{name} {', then '.join(dict.fromkeys(str(e[name]) for e in starts if name in e))}" for name in names]
    return ["## Versions", fenced("\n".join(lines) or "not recorded")]


def _repeat(config: Mapping[str, Any], step: int) -> list[str]:
    settings = {k: v for k, v in config.items() if k not in ELSEWHERE}
    settings["policy"] = {**config.get("policy", {}), "model": _model(config)}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return [
        "## Make it again",
        f"Save the settings as `run.yaml`. This is the model after step {step}. The same versions on the same kind of "
        "machine give the same weights.",
        fenced(shlex.join(["unipo", "train", "--config", "run.yaml"]), "bash"),
        fenced(text, "yaml"),
    ]


def _citation(method: Method) -> list[str]:
    if not method.paper.arxiv:
        return []
    key = re.sub(r"[^a-z0-9]+", "", method.name.lower()) or "method"
    title = re.sub(r"([\\{}%#&$_])", r"\\\1", method.paper.title)
    lines = [
        f"@misc{{{key},",
        f"  title = {{{title}}},",
        f"  eprint = {{{method.paper.arxiv}}},",
        "  archivePrefix = {arXiv},",
        f"  url = {{https://arxiv.org/abs/{method.paper.arxiv}}}",
        "}",
    ]
    return ["## Citation", f"The method: {paper_link(method.paper)}.", fenced("\n".join(lines), "bibtex")]


def versions() -> dict[str, str]:
    """What computed a result."""
    import torch
    import transformers

    import unipo

    return {
        "unipo": unipo.__version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
