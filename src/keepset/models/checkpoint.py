"""Checkpoint folders: which files make one, whether it is complete, how one is written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keepset.errors import KeepsetError, ModelError
from keepset.files import store

CONFIG = "config.json"
_WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json", "model*.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model*.bin"),
)
_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece*.model",
    "vocab.json",
    "vocab.txt",
    "*.tiktoken",
)
_TOKENIZER = (
    *_VOCABULARIES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn whatever a third-party reader raises into a ModelError: `what`, and why.

    The readers of transformers, torch, gguf and of code that comes with models share no base class
    of errors, so every exception is caught.
    """
    try:
        yield
    except KeepsetError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{what}: {type(error).__name__}: {reason}") from error


def relevant(names: Iterable[str], with_code: bool, with_weights: bool = True) -> list[str]:
    """The files of a repository that the model and its tokenizer consist of, sorted.

    Safetensors win over pickles; a repository's other formats (`consolidated.safetensors`, other
    frameworks', subfolders) are left out.

    Args:
        names: file names relative to the repository.
        with_code: whether Python files count.
        with_weights: whether weights count.
    """
    top = sorted(name for name in names if "/" not in name)
    wanted = (CONFIG, "generation_config.json", *_TOKENIZER, *(("*.py",) if with_code else ()))
    weights = _first_format(top) if with_weights else []
    return sorted({*weights, *_matching(top, wanted)})


def _first_format(names: list[str]) -> list[str]:
    for _, index, shards in _WEIGHTS:
        if weights := _matching(names, (index, shards)):
            return weights
    return []


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    patterns = tuple(patterns)
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


def check(where: str, folder: Path, with_code: bool) -> dict[str, Any]:
    """Check that a checkpoint folder is complete, without reading its weights.

    Args:
        where: the configuration key that error messages begin with.
        folder: the checkpoint.
        with_code: whether the model has its own code, and so may have its own tokenizer files.

    Returns:
        The content of config.json.

    Raises:
        ModelError: a file is missing, truncated or not JSON; the message names it.
    """
    if not folder.is_dir():
        raise ModelError(f"{where}: no checkpoint folder at {folder}; correct the path")
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{where}: {folder / CONFIG} is missing; is this a checkpoint folder?")
    for path in _weight_files(where, folder):
        if not path.is_file():
            raise ModelError(
                f"{where}: the weights' shard {path} is missing; copy or download it again"
            )
        if path.suffix == ".safetensors":
            _check_safetensors(where, path)
    if not with_code and not _matching((p.name for p in folder.iterdir()), _VOCABULARIES):
        raise ModelError(
            f"{where}: {folder} holds no tokenizer (none of {', '.join(_VOCABULARIES)}); save the"
            " model's tokenizer there"
        )
    content = _read_json(where, folder / CONFIG)
    if "model_type" not in content and "auto_map" not in content:
        raise ModelError(f"{where}: {folder / CONFIG} names no model_type")
    return content


def _weight_files(where: str, folder: Path) -> list[Path]:
    for single, index, _ in _WEIGHTS:
        if (folder / index).is_file():
            shards = _read_json(where, folder / index).get("weight_map", {}).values()
            return [folder / shard for shard in sorted(set(shards))]
        if (folder / single).is_file():
            return [folder / single]
    raise ModelError(
        f"{where}: {folder} holds no weights ({' or '.join(single for single, _, _ in _WEIGHTS)},"
        " or shards with their index)"
    )


def _read_json(where: str, path: Path) -> dict[str, Any]:
    try:
        content = store.read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{where}: {path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{where}: {path} is not a JSON object")
    return content


def _check_safetensors(where: str, path: Path) -> None:
    """Open the file, which reads the header and compares it with the file's size."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise ModelError(
            f"{where}: {path} is truncated or corrupt ({error}); copy or download it again"
        ) from None


def fingerprint(folder: Path, with_code: bool) -> str:
    """SHA-256 over the names and contents of the files that make the model."""
    parts: list[str] = []
    for name in relevant((p.name for p in folder.iterdir() if p.is_file()), with_code):
        with (folder / name).open("rb") as content:
            parts += [name, hashlib.file_digest(content, "sha256").hexdigest()]
    return store.fingerprint(*parts)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write a checkpoint folder whole or not at all; an earlier `folder` is replaced.

    It is written to a sibling folder first, and renamed when complete. The next run removes what
    an interrupted one left there.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
