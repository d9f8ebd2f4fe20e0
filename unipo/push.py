"""A saved model with its card, to the Hugging Face hub or to a directory: what would go, and sending it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unipo.errors import CheckpointError, ConfigError
from unipo.policy.loading import adapter_base, refuse_stacked
from unipo.training.card import write_card
from unipo.training.checkpoint import CARD
from unipo.training.config import TrainConfig, from_dict, read_mapping
from unipo.training.saved import Saved, find_saved
from unipo.training.setup import resolve_method


@dataclass(frozen=True)
class Parcel:
    """What is to be sent: the files of one model directory, by name with their sizes in bytes.

    stale: why the card could not be written anew, '' if it was or needs not be.
    """

    saved: Saved
    files: dict[str, int]
    stale: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    @property
    def message(self) -> str:
        """What the upload is called."""
        place = f"{self.saved.run.name}, step {self.saved.step}" if self.saved.run else self.saved.model.name
        return f"unipo: {place}"


def pack(name: str) -> Parcel:
    """The model of a run, checkpoint or directory. Its card is written anew, with every evaluation there is by now.

    Only the model's own files go: no optimiser state, prompts, responses or logs of the run.
    Raises ConfigError for what is no saved model; CheckpointError where it is damaged or has no weights.
    """
    saved = find_saved(name)
    if saved is None:
        raise ConfigError(f"{name!r} is no directory: give a run, a checkpoint or a directory with a saved model")
    files = {p.name: p.stat().st_size for p in sorted(saved.model.iterdir()) if _goes(p)}
    if "config.json" not in files and "adapter_config.json" not in files:
        raise ConfigError(
            f"{saved.model} holds no saved model (no config.json); it contains: {', '.join(files) or '-'}"
        )
    if not any(file.endswith((".safetensors", ".bin")) for file in files):
        raise CheckpointError(f"{saved.model} holds no weights (*.safetensors)")
    if base := adapter_base(str(saved.model)):
        refuse_stacked(base, str(saved.model))
    stale = ""
    if saved.run is not None and saved.step is not None:
        try:
            config: TrainConfig = from_dict(TrainConfig, read_mapping(saved.run / "config.yaml"))
            method = resolve_method(config.method, config.set, config.plugin).bound_to(config.sampling.max_tokens)
        except ConfigError as error:  # a method made in Python is known to the process that trained it alone
            stale = str(error)
        else:
            files[CARD] = write_card(saved.model, saved.run, saved.step, method).stat().st_size
    return Parcel(saved, dict(sorted(files.items())), stale)


def _goes(path: Path) -> bool:
    """Plain files only: a link could lead anywhere, and hidden files are somebody's notes."""
    return path.is_file() and not path.is_symlink() and not path.name.startswith(".")


def to_directory(parcel: Parcel, target: Path) -> str:
    """Copy the files to a directory that is new or empty. Returns where they lie."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists and is not an empty directory")
    target.mkdir(parents=True, exist_ok=True)
    for name in parcel.files:
        shutil.copyfile(parcel.saved.model / name, target / name)
    return str(target)


def to_hub(parcel: Parcel, repository: str, public: bool = False, api: Any = None) -> str:
    """Upload the files to a model repository, which is made if it does not exist. Returns its address.

    public: of a repository that is made now; one that exists stays as it is.  api: of huggingface_hub, made if absent.
    Raises ConfigError with what the hub answered: not logged in, no such name, no connection.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi(library_name="unipo") if api is None else api
    try:
        made = api.create_repo(repository, repo_type="model", private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            repo_type="model",
            folder_path=str(parcel.saved.model),
            allow_patterns=list(parcel.files),
            commit_message=parcel.message,
        )
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ConfigError(f"the hub did not take {repository!r}: {str(error).strip()}") from error
    return str(made)
