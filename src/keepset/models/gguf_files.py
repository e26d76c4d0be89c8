"""GGUF files: what is in them, and the conversion to a plain checkpoint."""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from keepset.models.bos import added_before
from keepset.models.checkpoint import explained, save


def convert_gguf(where: str, file: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file to `folder`, dequantized to float32.

    Raises:
        ModelError: transformers cannot read the file.
    """
    with explained(f"{where}: cannot read {file}"):
        arguments = {"gguf_file": file.name, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **arguments)
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **arguments)
        adds_bos = gguf.GGUFReader(file).get_field("tokenizer.ggml.add_bos_token")
        if adds_bos is not None and adds_bos.contents() != (added_before(tokenizer) is not None):
            tokenizer.add_bos_token = adds_bos.contents()
    save(_without_quantization(model), tokenizer, folder)


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
