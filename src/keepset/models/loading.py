"""Prepare a model once; load it as often as needed."""

from __future__ import annotations

from collections.abc import Mapping
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
from keepset.models.checkpoint import check, explained, fingerprint, relevant
from keepset.models.gguf_files import convert_gguf
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
        the token that stands before every text, or None).

    Raises:
        ModelError: the model is missing, incomplete or unknown; the message says what to do.
    """
    where, code = f"models.{name}", source.trust_remote_code
    files = find(where, source)
    path = files.path
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{where}: {path} is neither a checkpoint folder nor a .gguf file")
        path = Path(folder).resolve() / "checkpoint"
        convert_gguf(where, files.path, path)
    elif mamba_ssm.is_original(path):
        path = Path(folder).resolve() / "checkpoint"
        mamba_ssm.convert(where, files.path, _named_tokenizer(where, source), path)
    converted = path != files.path
    _check_known(where, check(where, path, code), code)
    info = {
        "name": name,
        "source": source.model_dump(exclude_none=True, exclude={"sites"}),
        "origin": source.origin,
        "checkpoint": str(path) if converted or not source.hub else source.hub,
        "revision": None if converted else files.revision,
        "trust_remote_code": code,
        "license": files.license,
        "fingerprint": _fingerprint(source, files, path),
        **_describe(where, path, code),
    }
    info["bos"] = bos_token(
        load_tokenizer(info), info["model_type"], source.bos, where=f"{where}.bos"
    )
    return info


def _named_tokenizer(where: str, source: Model) -> PreTrainedTokenizerBase:
    """The tokenizer that the configuration names, for a checkpoint without one."""
    if source.tokenizer is None:
        raise ModelError(
            f"{where}.tokenizer: checkpoints of mamba_ssm have no tokenizer; name a hub id or a"
            " folder (the published ones use EleutherAI/gpt-neox-20b)"
        )
    folder = Path(source.tokenizer).expanduser()
    if not folder.is_dir():
        folder = snapshot(f"{where}.tokenizer", source.tokenizer, None, tokenizer_only=True)
    with explained(f"{where}.tokenizer: cannot load {folder}"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


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
    check(where, folder, info["trust_remote_code"])
    with explained(f"{where}: cannot load {folder}"):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=info["trust_remote_code"],
            local_files_only=True,
            weights_only=True,
            output_loading_info=True,
        )
    if missing := sorted(report["missing_keys"]):
        # transformers would give them random values.
        raise ModelError(
            f"{where}: {folder} lacks {len(missing)} parameters of {type(model).__name__}:"
            f" {', '.join(missing[:3])}; use a complete checkpoint"
        )
    with explained(f"{where}: cannot move the model to {device}"):
        model = model.to(device)
    return model.eval().requires_grad_(False), load_tokenizer(info)


def load_tokenizer(info: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of a prepared model; the weights are not read.

    Raises:
        ModelError: the checkpoint is gone, or its tokenizer cannot be read.
    """
    folder = _folder(info)
    with explained(f"models.{info['name']}: cannot load the tokenizer of {folder}"):
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=info["trust_remote_code"], local_files_only=True
        )


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


def _fingerprint(source: Model, files: ModelFiles, path: Path) -> str:
    code = source.trust_remote_code
    if source.hub is None or files.revision is None:
        return fingerprint(path, code)
    # A commit fixes the contents: naming the files is enough.
    names = relevant((file.name for file in path.iterdir()), code)
    return store.fingerprint(source.hub, files.revision, *names)


def _describe(where: str, folder: Path, code: bool) -> dict[str, Any]:
    """Facts about the model, from its configuration alone."""
    with explained(f"{where}: cannot build the model of {folder}"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=code, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=code)
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
