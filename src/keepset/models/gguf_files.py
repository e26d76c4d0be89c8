"""GGUF files: found by their content, joined from parts, and converted to a plain checkpoint.

transformers reads a GGUF file, but drops what it has no place for: keys of the header, tensors, and
parts of a split file; what the file lacks it makes up. Here everything that the header and the
tensors say is either read or the file is refused.
"""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.integrations.gguf.reader import (
    GgufHeader,
    load_gguf_state_dict,
    read_gguf_metadata,
)
from transformers.integrations.gguf.utils import is_gguf_arch_supported
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from keepset.errors import ModelError
from keepset.models.bos import added_before
from keepset.models.checkpoint import check_complete, explained, save
from keepset.models.gguf_header import ROPE_FACTORS, apply_header, check_tokenizer

_MAGIC = b"GGUF"
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_FILE = "model.gguf"


def is_gguf(file: Path) -> bool:
    """Whether a file is a GGUF file, by its first bytes; names of cached files say nothing."""
    with file.open("rb") as content:
        return content.read(len(_MAGIC)) == _MAGIC


def convert_gguf(where: str, file: Path, folder: Path, *, with_tokenizer: bool = True) -> None:
    """Write the model and tokenizer of a GGUF file to `folder`, dequantized to float32.

    Args:
        where: the configuration key that error messages begin with.
        file: the file, or any part of a split one.
        folder: the folder to write, whole or not at all.
        with_tokenizer: whether the file's tokenizer will be used.

    Raises:
        ModelError: transformers cannot read the file, parts or tensors are missing, or it holds
            keys or tensors that the model would not read.
    """
    parts = _parts(where, file)
    split = len(parts) > 1
    if split:  # joined, they take as much room as apart
        folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        explained(f"{where}: cannot read {file}"),
        _reading_once(),
        # The file alone, under a name that transformers takes: what lies beside it is not its.
        tempfile.TemporaryDirectory(dir=folder.parent if split else None) as scratch,
    ):
        whole = Path(scratch) / _FILE
        if split:
            _join(parts, whole)
        else:
            whole.symlink_to(file.absolute())
        model, tokenizer, metadata = _read(where, file, whole)
        if with_tokenizer:
            check_tokenizer(f"{where}: {file}", metadata, tokenizer)
        save(_without_quantization(model), tokenizer, folder)


@contextmanager
def _reading_once() -> Iterator[None]:
    """Let transformers' readers share what they read of a file.

    They parse the whole header, with the vocabulary, for the configuration, the tokenizer and the
    weights, and make the map of tensor names again for every module: half of the time.
    """
    shared = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, function in shared.items():
            setattr(gguf, name, functools.cache(function))
        yield
    finally:
        for name, function in shared.items():
            setattr(gguf, name, function)


def _parts(where: str, file: Path) -> list[Path]:
    """The file, or all parts of the split file that it is one of."""
    match = _PART.fullmatch(file.name)
    with explained(f"{where}: cannot read {file}"):
        count = _split_count(file, later_part=match is not None and match[2] != "00001")
    if count < 2:
        return [file]
    if match is None or int(match[3]) != count:
        raise ModelError(
            f"{where}: {file} is one of {count} parts; give them the names"
            f" NAME-00001-of-{count:05d}.gguf and so on, in one folder"
        )
    parts = [file.with_name(f"{match[1]}-{n + 1:05d}-of-{count:05d}.gguf") for n in range(count)]
    if missing := [part.name for part in parts if not part.exists()]:
        raise ModelError(
            f"{where}: {file} is one of {count} parts, and {', '.join(missing)} are missing beside"
            " it; copy or download them"
        )
    return parts


def _split_count(file: Path, *, later_part: bool) -> int:
    if not later_part:
        return int(read_gguf_metadata(str(file))[0].get("split.count", 1))
    # transformers' reader is quick, and wants a header that later parts do not have.
    field = gguf.GGUFReader(file).get_field("split.count")
    return 1 if field is None else int(field.contents())


def _join(parts: list[Path], whole: Path) -> None:
    """Write one file with the header of the first part and the tensors of all."""
    readers = [gguf.GGUFReader(part) for part in parts]
    fields = readers[0].fields
    writer = gguf.GGUFWriter(whole, fields["general.architecture"].contents())
    for name, field in fields.items():
        if not name.startswith(("GGUF.", "split.", "general.architecture")):
            kind, *inner = field.types
            writer.add_key_value(name, field.contents(), kind, inner[-1] if inner else None)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read(where: str, file: Path, whole: Path) -> tuple[PreTrainedModel, Any, Mapping[str, Any]]:
    """The model, the tokenizer and the header of a whole file; all of the model is read."""
    metadata, names = read_gguf_metadata(str(whole))
    arguments: dict[str, Any] = {"gguf_file": whole.name, "local_files_only": True}
    config = AutoConfig.from_pretrained(whole.parent, **arguments)
    factors = _tensor(whole, ROPE_FACTORS) if ROPE_FACTORS in names else None
    apply_header(f"{where}: {file}", config, metadata, factors)
    tokenizer = AutoTokenizer.from_pretrained(whole.parent, **arguments)
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token")
    if adds_bos is not None and adds_bos != (added_before(tokenizer) is not None):
        tokenizer.add_bos_token = adds_bos
    model, report = AutoModelForCausalLM.from_pretrained(
        whole.parent,
        config=config,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # the report names them
        output_loading_info=True,
        **arguments,
    )
    unread = [*report["unexpected_keys"], *_unread(model, metadata, names)]
    check_complete(f"{where}: {file}", model, {**report, "unexpected_keys": unread})
    return model, tokenizer, metadata


def _tensor(whole: Path, name: str) -> torch.Tensor:
    tensor: torch.Tensor = load_gguf_state_dict(GgufHeader.from_file(str(whole)))[name][...]
    return tensor.float()


def _unread(model: PreTrainedModel, metadata: Mapping[str, Any], names: Any) -> list[str]:
    """The tensors that transformers' loader passes over without a word."""
    architecture = metadata["general.architecture"]
    if is_gguf_arch_supported(architecture):
        return []  # a newer loader, whose report names them
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config={})
    known = {*get_gguf_hf_weights_map(model, processor), ROPE_FACTORS}
    if architecture == "gpt2":
        known.add("output.weight")  # read under another name
    return [name for name in names if name not in known]


def _without_quantization(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not call itself quantized.

    transformers refuses to save a model read from GGUF, though its weights are dequantized.
    """
    content = model.config.to_dict()
    content.pop("quantization_config", None)
    with torch.device("meta"):
        fresh = type(model)(type(model.config).from_dict(content))
    fresh.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    return fresh
