"""Pages written from the code itself, so that they cannot fall behind it: `python -m unipo.docs`.

A page per method with the kept results of its reproductions and an index (docs/methods), the metrics
(docs/metrics.md), the settings (docs/settings.md), and two tables inside pages written by hand: the methods in
README.md, the columns in docs/architecture.md.  `--check` writes nothing and fails if a page is not what would be
written; a test runs it.
"""

from __future__ import annotations

import argparse
import inspect
import operator
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from unipo.columns import COLUMNS, STAGES
from unipo.compare.code import mixed
from unipo.errors import ConfigError
from unipo.markdown import paper_link, show, table
from unipo.method import Method, diff
from unipo.parts.part import Derived, Part
from unipo.registry import catalogue
from unipo.reproduce.claim import REVERSED, Metric, verdict
from unipo.reproduce.shelf import kept, older

WRITTEN = "<!-- Written by `python -m unipo.docs` from the code; edit the code instead. -->"
_STAGE_TITLES = {
    "source": "what the source brings",
    "reward": "what the reward adds",
    "signal": "computed without gradient, by models or from other columns, if a part asks",
    "advantage": "how much better than expected",
    "credit": "who among the tokens earns it (rewrites `advantage`)",
    "step": "over the whole minibatch, before each optimiser step, if a part asks",
    "forward": "the policy's pass with gradient",
}


def slug(name: str) -> str:
    """The file name of a method's page, without its ending."""
    return name.replace("++", "-plus-plus").replace("/", "-")


def link(name: str, folder: str = "") -> str:
    """A link to a method's page."""
    return f"[{name}]({folder}{slug(name)}.md)"


def first_line(part: Part) -> str:
    """What a part is, in one sentence: its docstring's, or that of the function the docstring points to."""
    text = inspect.getdoc(type(part)) or ""
    pointed = re.match(r"See `(\w+)`", text)
    if pointed:
        function = getattr(sys.modules[type(part).__module__], pointed[1], None)
        text = inspect.getdoc(function) or text
    return re.split(r"(?<=[.:])\s|\n\n", text, maxsplit=1)[0].replace("\n", " ").rstrip(":")


# -- pages -----------------------------------------------------------------------------------------
def method_page(
    method: Method,
    known: Mapping[str, Method],
    results: Sequence[Mapping[str, Any]] = (),
    outdated: Collection[str] = (),
) -> str:
    """Everything the code knows of a method. results: kept reproductions, of any method; outdated: see `older`."""
    facts = [f"Paper: {paper_link(method.paper)}."]
    if method.aliases:
        facts.append("Also called " + ", ".join(f"`{a}`" for a in method.aliases) + ".")
    children = [link(m.name) for m in known.values() if m.parent == method.name]
    grown = f"Grown from {link(method.parent)}." if method.parent else "It starts a family."
    facts.append(grown + (f" Grown from it: {', '.join(children)}." if children else ""))
    blocks = [WRITTEN, f"# {method.name}", method.summary, "\n".join(facts)]
    blocks += ["## The formula", f"```text\n{method.explain()}\n```", _passes(method)]
    blocks += ["## The parts", _parts_table(method)]
    if method.parent:
        blocks += [f"## What it changes in {method.parent}", _changes_table(known[method.parent], method)]
    if method.defaults:
        rows = [[f"`{k}`", show(v)] for k, v in method.defaults.items()]
        told = "Used unless you say otherwise; the optimiser's other settings are the library's."
        blocks += ["## Recommended settings", told, table(["setting", "value"], rows)]
    if method.notes:
        blocks += ["## Details", "\n".join(f"{i}. {note}" for i, note in enumerate(method.notes, 1))]
    if method.doubts:
        blocks += ["## What the sources leave open", "\n".join(f"- {doubt}" for doubt in method.doubts)]
    own = [result for result in results if result["method"] == method.name]
    for result in own:
        blocks += evidence(result, result["slug"] in outdated)
    losses = [*method.limits, *(text for result in own for text in measured_losses(result, result["slug"] in outdated))]
    if losses:
        blocks += ["## Where it loses", "\n".join(f"- {text}" for text in losses)]
    blocks.append(f"Try it: `unipo train --method {method.name}`. All methods: [index](README.md).")
    return "\n\n".join(b for b in blocks if b) + "\n"


# What is said beside a verdict whose experiment is written down otherwise now.
OLDER = "of an older statement of the experiment"


def evidence(result: Mapping[str, Any], outdated: bool = False) -> list[str]:
    """A kept reproduction: claim, verdict, numbers, picture."""
    slug_, budget, arms = result["slug"], result["budget"], list(result["arms"])
    told = [result["date"], f"{len(result['seeds'])} seeds", f"task `{result['task']}`"]
    told += [f"{budget['amount']:,.0f} {budget['unit']} per run"]
    told += [different] if (different := mixed(result.get("code", ()))) else []  # older results say nothing of it
    found = f"**{result['verdict']}**" + (f", {OLDER}" if outdated else "")
    facts = f"Verdict: {found} ({', '.join(told)}). `unipo reproduce {slug_}` does it again."
    rows = []
    for row in result["metrics"]:
        metric = Metric(row["name"], row["what"], row["higher"], row["kind"])
        for arm in arms:
            gap = row["differences"].get(arm)
            spelt = f"`{result['arms'][arm]['spelling']}`" if result["arms"][arm]["spelling"] != arm else arm
            rows.append([row["what"], spelt, metric.interval(row["arms"][arm]), metric.interval(gap) if gap else ""])
    path = f"../../reproductions/results/{slug_}"
    blocks = ["## Reproduced", f"Claim: {result['claim']}\n{facts}"]
    blocks.append(table(["measured", "arm", "mean over seeds", f"{arms[0]} minus this"], rows))
    if result["notes"]:
        blocks.append(result["notes"])
    blocks.append(f"![What each arm came to]({path}.png)")
    return [
        *blocks,
        f"Brackets are 95 % intervals over seeds. Every seed, the search and the versions: [{slug_}.json]({path}.json).",
    ]


def measured_losses(result: Mapping[str, Any], outdated: bool) -> list[str]:
    """The metrics of a reproduction by which an arm beats the system: the interval of the difference excludes 0."""
    told = []
    source = f"`{result['slug']}`" + (f", {OLDER}" if outdated else "")
    for row in result["metrics"]:
        metric = Metric(row["name"], row["what"], row["higher"], row["kind"])
        for arm, gap in row["differences"].items():
            if verdict(gap["low"], gap["high"], metric.higher) == REVERSED:
                told.append(f"Measured ({source}): {metric.what}, against {arm}: {metric.interval(gap)}.")
    return told


def _passes(method: Method) -> str:
    """Which models run beside the policy's own pass with gradient."""
    asked = [c for s in method.signals if not isinstance(s, Derived) for c in s.adds if c in method.needs]
    columns = [c for c in asked if c not in COLUMNS or COLUMNS[c].kind != "object"]
    told = []
    if columns:
        told.append(f"Columns that models compute for it without gradient: {', '.join(f'`{c}`' for c in columns)}.")
    if "old_logp" in columns and not method.source.ahead:
        told.append("`old_logp` costs no pass of its own where the engine's log-probs are exact.")
    if method.divergence is not None:
        told.append("Its teacher reads the responses once more for every pass over the batch, without gradient.")
    if method.value is not None:
        where = "a head on the policy's backbone" if method.value.shared else "a model of its own"
        told.append(f"The value model is trained beside the policy, as {where}.")
    return " ".join(told) or "Nothing but the policy's own pass with gradient is run."


def _parts_table(method: Method) -> str:
    rows = [(name, part) for name, part in method.parts]
    rows += [("signal", s) for s in method.signals if any(c in method.needs for c in s.adds)]
    return table(
        ["stage", "part", "what it is", "reads", "source"],
        [
            [name, f"`{show(part)}`", first_line(part), ", ".join(f"`{n}`" for n in part.needs), part.source]
            for name, part in rows
        ],
    )


def _changes_table(parent: Method, method: Method) -> str:
    rows = [[f"`{c.path}`", f"`{show(c.before)}`", f"`{show(c.after)}`"] for c in diff(parent, method)]
    return table(["setting", parent.name, method.name], rows) if rows else "Nothing but its name."


def methods_table(
    known: Mapping[str, Method], folder: str = "", verdicts: Mapping[str, str] | None = None, names: Sequence[str] = ()
) -> str:
    """The catalogue in one table, or the methods of `names`. verdicts: of the claims that were tested here, by method."""
    rows = []
    for method in [known[n] for n in names] or known.values():
        arxiv = method.paper.arxiv
        source = f"[{arxiv}](https://arxiv.org/abs/{arxiv})" if arxiv else method.paper.title
        parent = link(method.parent, folder) if method.parent else ""
        found = [] if verdicts is None else [verdicts.get(method.name, "")]
        rows.append([link(method.name, folder), method.summary, parent, source, *found])
    head = ["method", "what it is", "grown from", "paper"]
    return table(head if verdicts is None else [*head, "its claim here"], rows)


def index_page(
    known: Mapping[str, Method], results: Sequence[Mapping[str, Any]], outdated: Collection[str] = ()
) -> str:
    """All methods, what became of their claims, and who grew from whom."""
    verdicts = {r["method"]: r["verdict"] + (f", {OLDER}" if r["slug"] in outdated else "") for r in results}
    blocks = [
        WRITTEN,
        "# The methods",
        "Each is a composition of parts in `unipo/methods`. Its page gives the formula that is run, the parts with "
        "their sources, what it changes in the method it grew from, and what its sources leave open. `unipo methods` "
        "prints this list, `unipo explain NAME` the formula, `unipo diff A B` the difference of any two.",
        "The last column is the verdict on its paper's claim at a small scale, where `unipo reproduce` has been run.",
        methods_table(known, verdicts=verdicts),
        "## Who grew from whom",
        "\n".join(_tree(known, None, 0)),
    ]
    return "\n\n".join(blocks) + "\n"


def _tree(known: Mapping[str, Method], parent: str | None, depth: int) -> list[str]:
    lines = []
    for method in known.values():
        if method.parent == parent:
            lines.append("  " * depth + f"- {link(method.name)}")
            lines += _tree(known, method.name, depth + 1)
    return lines


def metrics_page(glossary: Mapping[str, str]) -> str:
    """What `metrics.jsonl` and the trackers show."""
    rows = [[f"`{name}`", meaning] for name, meaning in glossary.items()]
    blocks = [
        WRITTEN,
        "# What is measured",
        "One line per step in `metrics.jsonl` of the run directory, under these names. A number that does not exist "
        "for a method (or a step) is absent, not zero. Where a name ends in NAME, or lists several endings, there is "
        "one metric for each.",
        table(["name", "meaning"], rows),
    ]
    return "\n\n".join(blocks) + "\n"


def settings_page() -> str:
    """Every key of `TrainConfig`, under the heading of its section."""
    from unipo.command.help_text import TRAIN_HELP
    from unipo.training.config import TrainConfig
    from unipo.training.shorthand import SHORT

    short = {key: f"--{name.replace('_', '-')}" for name, key in SHORT.items()}
    blocks = [
        WRITTEN,
        "# Settings",
        "Every setting is an option of `unipo train`, a key of its configuration file, and a keyword of "
        "`unipo.train`: `--optim.max-grad-norm 0.5`, `optim: {max_grad_norm: 0.5}`, `optim={'max_grad_norm': 0.5}`. "
        "Options override the file, the file overrides defaults. An unknown name is an error that suggests the nearest. "
        "The parts of a method have settings of their own: `unipo explain NAME` lists them, `--set` changes them.",
    ]
    sections: dict[str, list[list[str]]] = {}
    for key, meaning in TRAIN_HELP.items():
        value = operator.attrgetter(key)(TrainConfig())
        default = f"`{value}`" if value not in ("", (), {}, None) else ""
        name = f"`{key}`" + (f" (`{short[key]}`)" if key in short else "")
        sections.setdefault(key.rpartition(".")[0] or "run", []).append([name, default, meaning])
    for section, rows in sections.items():
        blocks += [f"## {section}", table(["setting", "default", "meaning"], rows)]
    return "\n\n".join(blocks) + "\n"


def columns_table() -> str:
    """Which columns exist after which stage, from `unipo.columns`."""
    rows = []
    for stage in STAGES:
        rows.append([f"**{stage}**: {_STAGE_TITLES[stage]}", "", ""])
        members = [c for c in COLUMNS.values() if c.stage == stage]
        rows += [[f"`{c.name}`", c.level + (", objects" if c.kind == "object" else ""), c.meaning] for c in members]
    return table(["column", "level", "meaning"], rows)


# What the README lists.
BEST_KNOWN = (
    *("sft", "dpo", "ppo", "reinforce", "rloo", "reinforce++", "grpo", "dr-grpo", "dapo", "gspo", "cispo", "tis"),
    *("cepo", "opsd", "async-decoupled-ppo"),
)


# -- writing ---------------------------------------------------------------------------------------
def with_block(text: str, name: str, block: str, where: str) -> str:
    """Text with what stands between <!-- begin NAME --> and <!-- end NAME --> replaced."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ConfigError(f"{where} must hold {begin} and {end} once each")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{block}\n{end}{rest.split(end)[1]}"


def pages(root: Path) -> dict[Path, str]:
    """Every page that is written, with its content. Raises ConfigError where a page lacks its marks."""
    from unipo.training.metrics import GLOSSARY

    known = catalogue()
    results, outdated = kept(root / "reproductions"), older(root / "reproductions")
    made = {
        root / "docs/methods" / f"{slug(m.name)}.md": method_page(m, known, results, outdated) for m in known.values()
    }
    made[root / "docs/methods/README.md"] = index_page(known, results, outdated)
    made[root / "docs/metrics.md"] = metrics_page(GLOSSARY)
    made[root / "docs/settings.md"] = settings_page()
    inside: tuple[tuple[str, str, Callable[[], str]], ...] = (
        ("README.md", "methods", lambda: methods_table(known, "docs/methods/", names=BEST_KNOWN)),
        ("docs/architecture.md", "columns", columns_table),
    )
    for name, mark, block in inside:
        path = root / name
        if not path.is_file():
            raise ConfigError(f"{path} is not there; run from the repository, or name it with --root")
        made[path] = with_block(path.read_text(encoding="utf-8"), mark, block(), name)
    return made


def stale(root: Path, made: Mapping[Path, str]) -> list[Path]:
    """Written pages of methods that are no longer in the catalogue."""
    found = sorted((root / "docs/methods").glob("*.md"))
    return [p for p in found if p not in made and p.read_text(encoding="utf-8").startswith(WRITTEN)]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, or with --check say which are out of date (exit status 1)."""
    parser = argparse.ArgumentParser(prog="python -m unipo.docs", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="the repository (default: here)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    given = parser.parse_args(argv)
    made = pages(given.root)
    old = stale(given.root, made)
    changed = [p for p, text in made.items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    if given.check:
        for path in [*changed, *old]:
            print(f"out of date: {path} (make docs writes it)", file=sys.stderr)
        return 1 if changed or old else 0
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made[path], encoding="utf-8")
    for path in old:
        path.unlink()
    print(f"{len(changed)} of {len(made)} pages written, {len(old)} removed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
