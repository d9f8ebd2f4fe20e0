"""`unipo push RUN REPOSITORY`: says what would go to the hub, and sends it when told to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import make_dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from unipo.command.flags import JSON, annotated, parse
from unipo.command.output import json_line, line, note, table
from unipo.errors import ConfigError
from unipo.push import pack, to_directory, to_hub
from unipo.training.checkpoint import CARD

ABOUT = """Upload a saved model with its model card to the Hugging Face hub, or copy it to a directory with --to.

First it says which files would go where, and asks; --yes answers beforehand, --dry-run ends there. Only the model's
own files go: weights, configuration, tokenizer and card. The repository is private unless --public. Who you are is
what `hf auth login` or HF_TOKEN says.

examples:
  unipo push runs/cepo-20260101-120000 me/my-model
  unipo push runs/cepo-20260101-120000/checkpoints/step-000060 me/my-model --public --yes
  unipo push runs/cepo-20260101-120000 --to exported"""


def options() -> Any:
    what = arg(help="run (its newest checkpoint), checkpoint, or directory with a saved model", metavar="RUN_OR_DIR")
    where = arg(help="OWNER/NAME on the hub", metavar="REPOSITORY", help_behavior_hint="")
    flags = (
        ("public", "let everybody see a repository that is made now"),
        ("yes", "do not ask"),
        ("dry_run", "only say what would go"),
    )
    members: list[Any] = [
        ("model", Annotated[Positional[str], what]),
        ("repository", Annotated[Positional[str], where], ""),
        ("to", annotated(str, "copy to this new or empty directory instead", ""), ""),
        *(
            (name, Annotated[bool, FlagCreatePairsOff, arg(help=text, help_behavior_hint="")], False)
            for name, text in flags
        ),
        ("json", Annotated[bool, FlagCreatePairsOff, JSON], False),
    ]
    return make_dataclass("Options", members, frozen=True, namespace={"__doc__": " "})


def run(argv: Sequence[str]) -> int:
    o = parse(options(), argv, "unipo push", ABOUT)
    if bool(o.repository) == bool(o.to):
        raise ConfigError("say where to: a repository OWNER/NAME on the hub, or --to DIRECTORY")
    parcel = pack(o.model)
    kind = "public if it is made now" if o.public else "private if it is made now"
    target = o.to or f"https://huggingface.co/{o.repository} ({kind})"
    note(f"from {parcel.saved.model}\nto   {target}")
    note(table([(name, f"{size:,} bytes") for name, size in parcel.files.items()], ("file", "size")))
    if parcel.stale:
        note(f"the card stays as training wrote it: {parcel.stale}")
    if CARD not in parcel.files:
        note(f"there is no model card ({CARD})")
    if o.dry_run:
        note("nothing was sent (--dry-run)")
    elif o.to or o.yes or _agreed():
        place = to_directory(parcel, Path(o.to)) if o.to else to_hub(parcel, o.repository, o.public)
        if not o.json:
            line(f"sent {len(parcel.files)} files, {parcel.size:,} bytes: {place}")
    else:
        raise ConfigError("nothing was sent; add --yes to send it without being asked")
    if o.json:
        sent = not o.dry_run
        json_line({"model": str(parcel.saved.model), "to": o.to or o.repository, "files": parcel.files, "sent": sent})
    return 0


def _agreed() -> bool:
    """Ask, where somebody can answer."""
    if not sys.stdin.isatty():
        return False
    note("send these? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
