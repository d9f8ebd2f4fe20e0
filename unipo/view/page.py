"""The page: its parts put into one file, with the data inside or without.

Data is gzipped JSON in base64, which has no character that HTML knows, so whatever a model or a data set wrote cannot
become markup on the way in; the scripts put it on the page as text only.  A policy in the page itself allows no
script or style but ours, named by their hashes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from unipo.view.delta import Seen, about, column_table, delta
from unipo.view.reading import Run

# Scripts in the order in which they use each other.
SCRIPTS = ("dom.js", "store.js", "chart.js", "curves.js", "table.js", "tokens.js", "detail.js", "method.js", "main.js")
STYLES = ("vendor/uPlot.min.css", "style.css")
# Bytes of full texts and token records in a page that is a file, half of it for those with tokens at most; what does not
# fit is left out, and the page says so.
ROOM = 40 << 20
# Responses of a page that is a file; of more, whole steps are left out evenly.
MOST_ROWS = 120_000
# Responses whose details are packed together.
PACK = 64


def asset(name: str) -> str:
    return (files("unipo.view") / "assets" / name).read_text(encoding="utf-8")


def live_page(runs: Sequence[Run]) -> str:
    """The page that asks its server for everything."""
    return _assembled({"live": True, "runs": [about(r) for r in runs], "columns": column_table()}, [], runs)


def whole_page(runs: Sequence[Run], room: int = ROOM) -> str:
    """The page with everything inside, as far as there is room."""
    blocks: list[str] = []
    described = []
    for k, run in enumerate(runs):
        run.refresh()
        first, packs = _packed(run, room // len(runs), f"r{k}-")
        blocks += [_block(f"r{k}", _squeezed(first)), *packs]
        described.append(about(run))
    return _assembled({"live": False, "runs": described, "columns": column_table()}, blocks, runs)


def _packed(run: Run, room: int, prefix: str) -> tuple[dict[str, Any], list[str]]:
    """The run's record with a column `pack` (where a response's details are, -1 for nowhere), and the packs."""
    first = delta(run, Seen(), most=len(run) + 1)
    kept = _evenly(run.rows["step"], MOST_ROWS)
    if len(kept) < len(run):
        first["rows"] = {name: [values[i] for i in kept] for name, values in first["rows"].items()}
    pack_of = dict.fromkeys(kept, -1)
    packs: list[str] = []
    used = 0
    full = {True: False, False: False}  # no room for more: with tokens, without
    for members in _spread(kept, run.rows["step"], run.rows["traced"]):
        traced = bool(run.rows["traced"][members[0]])
        if full[traced]:
            continue
        squeezed = _squeezed([run.detail(i) for i in members])
        if used + len(squeezed) > (room // 2 if traced else room):
            full[traced] = True
            continue
        used += len(squeezed)
        pack_of |= {i: len(packs) for i in members}
        packs.append(_block(f"{prefix}{len(packs)}", squeezed))
    places: dict[int, int] = {}
    first["rows"]["pack"] = [pack_of[i] for i in kept]
    first["rows"]["place"] = [_next(places, pack_of[i]) for i in kept]
    return first, packs


def _next(places: dict[int, int], pack: int) -> int:
    places[pack] = places.get(pack, -1) + 1
    return places[pack]


def _evenly(steps: Sequence[int], most: int) -> list[int]:
    """Numbers of the responses to keep: all, or those of every n-th step so that at most so many are left."""
    if len(steps) <= most:
        return list(range(len(steps)))
    order = sorted(set(steps))
    every = -(-len(steps) // most)
    chosen = set(order[::every]) | {order[-1]}
    return [i for i, step in enumerate(steps) if step in chosen]


def _spread(kept: Sequence[int], steps: Sequence[int], traced: Sequence[int]) -> Iterator[list[int]]:
    """Packs of responses, so ordered that the first ones are spread over the run; those with tokens come first."""
    by_step: dict[tuple[bool, int], list[int]] = {}
    for i in kept:
        by_step.setdefault((not traced[i], steps[i]), []).append(i)
    for lacking in (False, True):
        order = sorted(step for absent, step in by_step if absent is lacking)
        pack: list[int] = []
        for k in sorted(range(len(order)), key=lambda k: (_reversed_bits(k), k)):
            pack += by_step[lacking, order[k]]
            if len(pack) >= PACK:
                yield sorted(pack)
                pack = []
        if pack:
            yield sorted(pack)


def _reversed_bits(k: int) -> int:
    """The bits of k in reverse order: counting so visits a range evenly, coarse places first."""
    return int(f"{k:032b}"[::-1], 2)


def _squeezed(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(errors="replace"), 5, mtime=0)).decode()


def _block(name: str, data: str) -> str:
    return f'<script type="text/plain" id="{name}">{data}</script>'


def _assembled(setup: dict[str, Any], blocks: Sequence[str], runs: Sequence[Run]) -> str:
    style = "\n".join(asset(name) for name in STYLES)
    script = f"{asset('vendor/uPlot.iife.min.js')}\n" + "\n".join(asset(name) for name in SCRIPTS)
    licence = asset("vendor/uPlot.LICENSE").replace("--", "- -")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        f"connect-src {chr(39) + 'self' + chr(39) if setup['live'] else chr(39) + 'none' + chr(39)}; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "POLICY": policy,
        "TITLE": escape(", ".join(r.name for r in runs)),
        "STYLE": style,
        "LICENCE": f"<!-- uPlot, shipped in this file:\n{licence}-->",
        "SETUP": _block("setup", _squeezed(setup)),
        "BLOCKS": "\n".join(blocks),
        "SCRIPT": script,
    }
    page = asset("page.html")
    for name, text in parts.items():
        before, _, after = page.partition(f"{{{{{name}}}}}")
        page = before + text + after if name != "TITLE" else page.replace("{{TITLE}}", text)
    return page


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
