"""`unipo view [RUN ...]`: runs as a page, live over a local server, or as one file."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from unipo.command.flags import JSON, parse
from unipo.command.output import json_line, line, note
from unipo.errors import ConfigError
from unipo.view.page import whole_page
from unipo.view.reading import Run, find_runs
from unipo.view.server import make_server

ABOUT = """See what a run is doing: curves, completions with their tokens coloured, the formula, warnings in plain words.

Serves the page on this machine only and follows runs that go on, until Ctrl-C. With --html it is written as one file
that works offline, from disk.

examples:
  unipo view                                       the newest run below runs/
  unipo view runs/mine runs/other                  overlaid
  unipo view runs                                  all of them
  unipo view runs/mine --html mine.html --no-serve
  ssh -L 8642:127.0.0.1:8642 HOST unipo view runs/mine --port 8642"""


@dataclass(frozen=True)
class Options:
    """ """

    runs: Annotated[
        Positional[tuple[str, ...]],
        arg(help="run directories, or directories of runs", metavar="[RUN ...]", help_behavior_hint=""),
    ] = ()
    html: Annotated[str, arg(help="write the page into this file", metavar="FILE", help_behavior_hint="")] = ""
    serve: Annotated[bool, arg(help="serve it until Ctrl-C", help_behavior_hint="(default: yes)")] = True
    port: Annotated[int, arg(help="to listen on; 0: any free one", help_behavior_hint="(default: 0)")] = 0
    room: Annotated[
        int, arg(help="MB for full texts in the file of --html", metavar="MB", help_behavior_hint="(default: 40)")
    ] = 40
    open: Annotated[bool, FlagCreatePairsOff, arg(help="open it in a browser", help_behavior_hint="")] = False
    json: Annotated[bool, FlagCreatePairsOff, JSON] = False


def run(argv: Sequence[str]) -> int:
    options = parse(Options, argv, "unipo view", ABOUT)
    if options.room < 1:
        raise ConfigError(f"--room must be at least 1 MB, got {options.room}")
    runs = [Run(path) for path in find_runs(list(options.runs))]
    if options.html:
        write(runs, Path(options.html), options.room, options.json)
    if options.serve:
        serve(runs, options.port, options.open, options.json)
    elif not options.html:
        raise ConfigError("--no-serve does nothing without --html FILE")
    elif options.open:
        webbrowser.open(Path(options.html).resolve().as_uri())
    return 0


def write(runs: Sequence[Run], file: Path, room: int, json: bool = False) -> None:
    """The page as one file. Raises ConfigError where it cannot be written."""
    page = whole_page(runs, room << 20)
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
    names, responses = [r.name for r in runs], sum(map(len, runs))
    if json:
        json_line({"html": str(file), "bytes": file.stat().st_size, "responses": responses, "runs": names})
    else:
        line(f"{file}: {len(page) / 2**20:.1f} MB, {responses} responses of {', '.join(names)}")


def serve(runs: Sequence[Run], port: int, show: bool, json: bool = False) -> None:
    """Answer until Ctrl-C."""
    with make_server(runs, port) as server:
        address = "http://{}:{}/".format(*server.server_address[:2])
        names = [r.name for r in runs]
        if json:
            json_line({"address": address, "runs": names})
        else:
            line(f"{', '.join(names)}: {address}")
        note("Ctrl-C ends it")
        if show:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            note("")
