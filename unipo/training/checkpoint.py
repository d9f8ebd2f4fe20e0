"""Checkpoints that are either whole or not there.

checkpoints/step-000040/
    model/          loads with plain transformers (or peft)
    value/          the value model, for methods that learn one
    trainer.pt      optimiser, prompt stream, part states, random generators, buffered prompts
    checksums.json  SHA-256 of every file but the model card, which may be edited, written last
A checkpoint is written beside its place and renamed when complete.  Loading verifies the checksums and falls
back to the newest good one, saying so.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from unipo.errors import CheckpointError

CARD = "README.md"
_PREFIX = "step-"


def checkpoint_path(root: Path, step: int) -> Path:
    """Where the checkpoint after a step lies."""
    return root / f"{_PREFIX}{step:06d}"


def list_checkpoints(root: Path) -> list[tuple[int, Path]]:
    """(step, path), newest first; unfinished ones are not listed."""
    found = [
        (int(p.name.removeprefix(_PREFIX)), p) for p in root.glob(f"{_PREFIX}*") if p.name[len(_PREFIX) :].isdigit()
    ]
    return sorted(found, reverse=True)


def save_checkpoint(
    root: Path, step: int, save_model: Callable[[Path], None], state: Mapping[str, Any], keep: int = 0
) -> Path:
    """Write a checkpoint atomically, then delete all but the newest `keep` (0: keep all)."""
    final = checkpoint_path(root, step)
    partial = root / f".{final.name}.partial"
    try:
        for left in root.glob(".step-*.partial"):  # by a kill while it was written
            shutil.rmtree(left)
        partial.mkdir(parents=True)
        save_model(partial / "model")
        torch.save(dict(state), partial / "trainer.pt")
        sums = {
            str(p.relative_to(partial)): _digest(p)
            for p in sorted(partial.rglob("*"))
            if p.is_file() and p.name != CARD
        }
        (partial / "checksums.json").write_text(json.dumps(sums, indent=1))
        for path in partial.rglob("*"):
            if path.is_file():
                _flush(path)
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        _flush(root)
    # safetensors reports a full disk as its own exception type, torch.save as a RuntimeError.
    except (OSError, RuntimeError, _safetensor_error()) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"could not write checkpoint {final}: {error}. Earlier checkpoints are untouched; free some space and "
            "go on with --resume"
        ) from error
    if keep:
        for _, old in list_checkpoints(root)[keep:]:
            shutil.rmtree(old)
    return final


def verify_checkpoint(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    sums_file = path / "checksums.json"
    if not sums_file.is_file():
        return "checksums.json is missing"
    try:
        sums: dict[str, str] = json.loads(sums_file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return "checksums.json is not readable"
    for name, digest in sums.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if _digest(file) != digest:
            return f"{name} is damaged"
    return None


def newest_good(root: Path) -> tuple[int, Path, list[str]] | None:
    """(step, path, complaints about newer ones) of the newest whole checkpoint; None if there is none at all.

    Raises CheckpointError where checkpoints exist but every one is damaged.
    """
    complaints: list[str] = []
    for step, path in list_checkpoints(root):
        problem = verify_checkpoint(path)
        if problem is None:
            return step, path, complaints
        complaints.append(f"{path.name}: {problem}")
    if complaints:
        raise CheckpointError(f"every checkpoint in {root} is damaged ({'; '.join(complaints)}); start a new run")
    return None


def load_state(path: Path) -> dict[str, Any]:
    """The trainer's state of a verified checkpoint."""
    # The file was written by this library and its checksum was verified; it holds optimiser state and batches.
    state: dict[str, Any] = torch.load(path / "trainer.pt", weights_only=False)
    return state


def random_state() -> dict[str, Any]:
    """Global generators, which in-process rewards may use."""
    return {"python": random.getstate(), "torch": torch.get_rng_state()}


def restore_random(state: Mapping[str, Any]) -> None:
    """Put the random generators back to where a checkpoint found them."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _safetensor_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError  # type: ignore[no-any-return]
