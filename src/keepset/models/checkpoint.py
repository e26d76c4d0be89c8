"""Checkpoint folders: which files make one, whether it is complete, how one is written."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keepset.errors import KeepsetError, ModelError
from keepset.files import store

CONFIG = "config.json"
PER_LAYER = "keepset_state_sizes"
"""Key of a checkpoint's configuration: state size by layer, where layers differ."""
_ADAPTER = "adapter_config.json"
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
# Methods whose weights transformers turns back into plain ones as it reads them.
_DEQUANTISED = {"fp8"}
# Constants that older releases stored with the weights: masks, positions, rotary frequencies.
_WITHOUT_EFFECT = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|masked_bias|causal_mask|attn\.bias|attention\.bias|position_ids"
    r"|(encoder|decoder)\.version)$"
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
    for single, index, shards in _WEIGHTS:
        if single in names:
            return [single]
        if weights := _matching(names, (index, shards)):
            return weights
    return []


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    patterns = tuple(patterns)
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


def check(where: str, folder: Path, with_tokenizer: bool) -> dict[str, Any]:
    """Check that a checkpoint folder is complete, without reading its weights.

    Args:
        where: the configuration key that error messages begin with.
        folder: the checkpoint.
        with_tokenizer: whether the folder must hold a tokenizer that transformers has a class for.

    Returns:
        The content of config.json.

    Raises:
        ModelError: a file is missing, truncated or not JSON, or the weights are quantised or to be
            completed by an adapter; the message names it.
    """
    if not folder.is_dir():
        raise ModelError(f"{where}: no checkpoint folder at {folder}; correct the path")
    if (folder / _ADAPTER).exists():
        raise ModelError(
            f"{where}: {folder / _ADAPTER} is of an adapter, which is not applied here; merge it"
            " into its model and save that"
        )
    if not (folder / CONFIG).is_file():
        files = sorted(path.name for path in folder.glob("*.gguf"))
        remedy = f"give the path of {files[0]}" if files else "is this a checkpoint folder?"
        raise ModelError(f"{where}: {folder / CONFIG} is missing; {remedy}")
    homes: dict[str, Path] = {}
    for path in weight_files(where, folder):
        if not path.is_file():
            raise ModelError(
                f"{where}: the weights' shard {path} is missing; copy or download it again"
            )
        types = _types(where, path)
        if twice := sorted(homes.keys() & types):
            raise ModelError(
                f"{where}: {_some(twice)} is in {path} and in {homes[twice[0]].name} beside it, and"
                " only one would be read; remove the shard that is left over"
            )
        homes |= dict.fromkeys(types, path)
        _check_types(where, path, types)
    if with_tokenizer and not _matching((p.name for p in folder.iterdir()), _VOCABULARIES):
        raise ModelError(
            f"{where}: {folder} holds no tokenizer (none of {', '.join(_VOCABULARIES)}); save the"
            " model's tokenizer there, or name one (`tokenizer`, on the command line --tokenizer)"
        )
    content = _read_json(where, folder / CONFIG)
    if "model_type" not in content and "auto_map" not in content:
        raise ModelError(f"{where}: {folder / CONFIG} names no model_type")
    _check_plain(where, folder, content)
    return content


def _check_plain(where: str, folder: Path, content: Mapping[str, Any]) -> None:
    """Refuse weights that are not to be read as they are from the files that are checked."""
    quantised = content.get("quantization_config")
    method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
    if quantised and method not in _DEQUANTISED:
        raise ModelError(
            f"{where}: the weights of {folder} are quantised ({method}), and what is left out is"
            " chosen and cut in plain weights; use the checkpoint that they were made of"
        )
    if content.get("transformers_weights"):
        raise ModelError(
            f"{where}: {folder / CONFIG} names other weights, {content['transformers_weights']};"
            " take out transformers_weights, and call the file model.safetensors"
        )


def check_complete(what: str, model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Refuse weights that are not exactly a model's: some are missing, or some are not read.

    Args:
        what: the model and where it is; the message begins with it.
        model: the model.
        report: `missing_keys`, `unexpected_keys` and `mismatched_keys` of transformers' loading
            report; the first two of torch's.

    Raises:
        ModelError: names that one side lacks, or shapes that differ. transformers would give
            missing ones random values.
    """
    kind = type(model).__name__
    if others := sorted(report.get("mismatched_keys", ())):
        name, stored, expected = others[0]
        raise ModelError(
            f"{what} holds {len(others)} tensors of other shapes than {kind} has: {name} is"
            f" {tuple(stored)}, not {tuple(expected)}, and so on; the configuration is not of these"
            " weights"
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{what} lacks {len(missing)} parameters of {kind}: {_some(missing)}; use a complete"
            " checkpoint"
        )
    unread = sorted(name for name in report["unexpected_keys"] if not _WITHOUT_EFFECT.search(name))
    if unread:
        raise ModelError(
            f"{what} holds {len(unread)} tensors that {kind} does not read: {_some(unread)}; the"
            " configuration is not of these weights, or they are quantised"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")


def weight_files(where: str, folder: Path) -> list[Path]:
    """The files that the weights are read from, in transformers' order of preference.

    Raises:
        ModelError: there are none.
    """
    for single, index, _ in _WEIGHTS:
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            shards = _read_json(where, folder / index).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
                raise ModelError(f"{where}: {folder / index} has no weight_map of names to files")
            return [folder / shard for shard in sorted(set(shards.values()))]
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


def _types(where: str, path: Path) -> dict[str, str]:
    """The number format of each tensor in a file of weights, by its header.

    Raises:
        ModelError: the file is damaged.
    """
    if path.suffix != ".safetensors":
        with explained(f"{where}: cannot load {path}"):
            tensors = torch.load(path, map_location="meta", weights_only=True)
        return {n: str(t.dtype) for n, t in tensors.items() if isinstance(t, Tensor)}
    try:
        # The header is compared with the file's size.
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(
            f"{where}: {path} is truncated or corrupt ({error}); copy or download it again"
        ) from None


def _check_types(where: str, path: Path, types: Mapping[str, str]) -> None:
    """Refuse weights that are not floating-point numbers: torch would convert them unseen."""
    others = {
        name: kind
        for name, kind in types.items()
        if not kind.lower().removeprefix("torch.").startswith(("f", "bf"))
        and not _WITHOUT_EFFECT.search(name)
    }
    if others:
        raise ModelError(
            f"{where}: {path} stores {_some(list(others))} as {next(iter(others.values()))}, not as"
            " floating-point numbers: quantised weights, which would be read without their scales;"
            " use the checkpoint that they were made of"
        )


def check_stored(where: str, folder: Path, model: PreTrainedModel) -> None:
    """Refuse tensors that transformers passes over without a word.

    Args:
        where: the configuration key that error messages begin with.
        folder: the checkpoint that `model` was read from.
        model: the model.

    Raises:
        ModelError: a tensor is there under two names, of which one is read; or stored rotary
            frequencies are not those that the model computes from its configuration.
    """
    files = weight_files(where, folder)
    names = {name for path in files for name in _types(where, path)}
    prefix = f"{model.base_model_prefix}."
    if twice := sorted(name for name in names if prefix + name in names):
        raise ModelError(
            f"{where}: {folder} holds {_some(twice)} also as {prefix + twice[0]}, and only one is"
            " read; remove the one that is not the model's"
        )
    used = [tensor.cpu() for name, tensor in model.named_buffers() if name.endswith("inv_freq")]
    for path in files:
        for name, stored in _read_some(path, {n for n in names if n.endswith("emb.inv_freq")}):
            if not any(_close(stored, tensor) for tensor in used):
                raise ModelError(
                    f"{where}: {path} holds rotary frequencies ({name}) that are not those of the"
                    " configuration; correct rope_theta or rope_scaling in config.json"
                )


def _close(stored: Tensor, used: Tensor) -> bool:
    # They may be stored with eight bits.
    return stored.shape == used.shape and torch.allclose(
        stored.float(), used.float(), rtol=1e-2, atol=0
    )


def _read_some(path: Path, names: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Those tensors of a file that have one of `names`."""
    if not names:
        return
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in sorted(names & set(file.keys())):
                yield name, file.get_tensor(name)
    else:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        yield from ((name, tensors[name]) for name in sorted(names & set(tensors)))


def fingerprint(folder: Path, with_code: bool, with_weights: bool = True) -> str:
    """SHA-256 over the names and contents of the files that make the model."""
    parts: list[str] = []
    present = (path.name for path in folder.iterdir() if path.is_file())
    read = weight_files(str(folder), folder) if with_weights else []
    weights = (path.relative_to(folder).as_posix() for path in read)
    for name in sorted({*relevant(present, with_code, with_weights=False), *weights}):
        with (folder / name).open("rb") as content:
            parts += [name, hashlib.file_digest(content, "sha256").hexdigest()]
    return store.fingerprint(*parts)


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    **options: Any,
) -> None:
    """Write a checkpoint folder whole or not at all; an earlier `folder` is replaced.

    `options` are those of `save_pretrained`.

    It is written to a sibling folder first, and renamed when complete. The next run removes what
    an interrupted one left there.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        model.save_pretrained(partial, **options)
        tokenizer.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
