"""Prepare a model once; load it as often as needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from keepset.errors import ModelError
from keepset.files import store
from keepset.models import mamba_ssm
from keepset.models.bos import bos_token
from keepset.models.checkpoint import (
    PER_LAYER,
    check,
    check_complete,
    check_stored,
    explained,
    fingerprint,
    relevant,
)
from keepset.models.gguf_files import convert_gguf, is_gguf
from keepset.models.ignored import check_settings
from keepset.models.limits import positions_of
from keepset.models.sources import ModelFiles, cached, find, snapshot
from keepset.settings import Model
from keepset.sites.families import ACTIVATION_KEYS


def prepare(name: str, source: Model, folder: str | Path) -> dict[str, Any]:
    """Find a model, check that it can be loaded, and convert it if transformers needs that.

    GGUF files are dequantized, and original checkpoints of mamba_ssm get transformers' names.

    Args:
        name: the model's key in `models` of the configuration.
        source: where it comes from.
        folder: a converted checkpoint goes to `folder`/checkpoint.

    Returns:
        What `load` needs and results record, ready for JSON: name, source, origin, checkpoint
        (absolute path or hub id), revision (commit of a hub repository), trust_remote_code,
        fingerprint, architecture, model_type, activation (None: unknown), n_parameters,
        vocab_size, max_positions (None: unlimited or unknown), license (None: unknown), bos (id of
        the token that stands before every text, or None), tokenizer (None: the checkpoint's own;
        else its path, or hub and revision).

    Raises:
        ModelError: the model is missing, incomplete or unknown; the message says what to do.
    """
    where, code = f"models.{name}", source.trust_remote_code
    files = find(where, source)
    path = files.path
    original = mamba_ssm.is_original(path)
    if path.is_file():
        if not is_gguf(path):
            raise ModelError(f"{where}: {path} is neither a checkpoint folder nor a .gguf file")
        path = Path(folder).resolve() / "checkpoint"
        convert_gguf(where, files.path, path, with_tokenizer=source.tokenizer is None)
    elif original:
        path = Path(folder).resolve() / "checkpoint"
        words = _read_tokenizer(where, _tokenizer_files(where, source).folder, code)
        mamba_ssm.convert(where, files.path, words, path)
    converted = path != files.path
    named = None if source.tokenizer is None or original else _tokenizer_files(where, source)
    content = check(where, path, with_tokenizer=not code and named is None)
    _check_known(where, content, code)
    info = {
        "name": name,
        "source": source.model_dump(exclude_none=True, exclude={"sites"}),
        "origin": source.origin,
        "checkpoint": str(path) if converted or not source.hub else source.hub,
        "revision": None if converted else files.revision,
        "trust_remote_code": code,
        "license": files.license,
        "fingerprint": _fingerprint(source, files, path, named),
        "tokenizer": None if named is None else named.where,
        **_describe(where, path, content, code),
    }
    bos = bos_token(load_tokenizer(info), info["model_type"], source.bos, where=f"{where}.bos")
    if bos is not None and bos >= info["vocab_size"]:
        raise ModelError(
            f"{where}.bos: the tokenizer's BOS has id {bos}, and the model has"
            f" {info['vocab_size']} tokens; use the model's own tokenizer, or set bos: false"
        )
    return {**info, "bos": bos}


@dataclass(frozen=True)
class _TokenizerFiles:
    """A tokenizer that the configuration names, apart from the checkpoint."""

    folder: Path
    where: dict[str, str]  # as model.json records it: path, or hub and revision


def _tokenizer_files(where: str, source: Model) -> _TokenizerFiles:
    name = source.tokenizer
    if name is None:
        raise ModelError(
            f"{where}.tokenizer: checkpoints of mamba_ssm have no tokenizer; name a hub id or a"
            " folder (the published ones use EleutherAI/gpt-neox-20b)"
        )
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _TokenizerFiles(folder, {"path": str(folder.absolute())})
    if name.startswith(("/", ".", "~")):
        raise ModelError(f"{where}.tokenizer: {folder} is no folder; correct the path")
    folder = snapshot(f"{where}.tokenizer", name, None, tokenizer_only=True)
    return _TokenizerFiles(folder, {"hub": name, "revision": folder.name})


def _read_tokenizer(where: str, folder: Path, code: bool) -> PreTrainedTokenizerBase:
    with explained(f"{where}: cannot load the tokenizer of {folder}"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=code, local_files_only=True)


def load(
    info: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a prepared model for inference: eval mode, no parameter requires a gradient.

    Weights are read in `dtype`, one shard at a time; pickled ones with weights_only.

    Raises:
        ModelError: the checkpoint is gone, incomplete or damaged, or it lacks parameters.
    """
    # A checkpoint loads in a second or two, and jobs report their own progress.
    transformers.utils.logging.disable_progress_bar()
    where, folder = f"models.{info['name']}", _folder(info)
    own_tokenizer = info["tokenizer"] is None and not info["trust_remote_code"]
    content = check(where, folder, with_tokenizer=own_tokenizer)
    if PER_LAYER in content:
        # By name: what finds and cuts states is built on this package.
        cut = import_module("keepset.hold.cut")
        return cut.load_pruned(folder, dtype=dtype, device=device), load_tokenizer(info)
    with explained(f"{where}: cannot load {folder}"):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=info["trust_remote_code"],
            local_files_only=True,
            weights_only=True,
            ignore_mismatched_sizes=True,  # the report names them
            output_loading_info=True,
        )
    check_complete(f"{where}: {folder}", model, report)
    check_stored(where, folder, model)
    if content.get("quantization_config"):
        _check_dtype(where, folder, model, dtype)
    with explained(f"{where}: cannot move the model to {device}"):
        model = model.to(device)
    return model.eval().requires_grad_(False), load_tokenizer(info)


def _check_dtype(where: str, folder: Path, model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Refuse weights that were quantised and are not all plain numbers of one format now."""
    dtypes = {parameter.dtype for parameter in model.parameters()} - {dtype}
    if dtypes:
        names = ", ".join(sorted(map(str, dtypes)))
        raise ModelError(
            f"{where}: the quantised weights of {folder} are {names} after reading, where {dtype}"
            " was asked for; set dtype: float32 on a CPU, or use a checkpoint that is not quantised"
        )


def load_tokenizer(info: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of a prepared model; the weights are not read.

    Raises:
        ModelError: the checkpoint is gone, or its tokenizer cannot be read.
    """
    where, named = f"models.{info['name']}", info["tokenizer"]
    if named is None:
        folder = _folder(info)
    elif "path" in named:
        folder = Path(named["path"])
    else:
        folder = cached(f"{where}.tokenizer", named["hub"], named["revision"])
    return _read_tokenizer(where, folder, info["trust_remote_code"])


def _folder(info: Mapping[str, Any]) -> Path:
    if info["revision"] is None:
        return Path(info["checkpoint"])
    return cached(f"models.{info['name']}", info["checkpoint"], info["revision"])


def _check_known(where: str, content: Mapping[str, Any], code: bool) -> None:
    """Refuse a model whose class transformers does not have, unless it may run its own code."""
    model_type = content.get("model_type")
    if code or model_type in transformers.CONFIG_MAPPING:
        return
    if "auto_map" in content:
        raise ModelError(
            f"{where}.trust_remote_code: model type {model_type!r} runs Python code that comes with"
            " the model; read that code, then set this key to true"
        )
    raise ModelError(
        f"{where}: transformers {transformers.__version__} does not know model type {model_type!r};"
        " a newer release may"
    )


def _fingerprint(
    source: Model, files: ModelFiles, path: Path, named: _TokenizerFiles | None
) -> str:
    code = source.trust_remote_code
    if source.hub is None or files.revision is None:
        content = fingerprint(path, code)
    else:
        # A commit fixes the contents: naming the files is enough.
        names = relevant((file.name for file in path.iterdir()), code)
        content = store.fingerprint(source.hub, files.revision, *names)
    if named is None:
        return content
    return store.fingerprint(content, fingerprint(named.folder, code, with_weights=False))


def _describe(where: str, folder: Path, content: Mapping[str, Any], code: bool) -> dict[str, Any]:
    """Facts about the model, from its configuration alone."""
    with explained(f"{where}: cannot build the model of {folder}"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=code, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=code)
    if not code:  # code that comes with a model knows its own keys
        check_settings(where, content, model)
    text = config.get_text_config()
    activations = (getattr(text, key, None) for key in ACTIVATION_KEYS)
    return {
        "architecture": type(model).__name__,
        "model_type": text.model_type,
        "activation": next((a for a in activations if a is not None), None),
        "n_parameters": model.num_parameters(),
        "vocab_size": text.vocab_size,
        "max_positions": positions_of(config),
    }
