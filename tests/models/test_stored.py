"""Weights that a checkpoint stores twice, in another shape, or as no floats: refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from prepared import CPU, prepared
from safetensors.torch import load_file, save_file

from keepset import load_pruned, models
from keepset.errors import ModelError

Tensors = dict[str, torch.Tensor]
UP = "model.layers.0.mlp.up_proj.weight"
TABLE = "model.embed_tokens.weight"


def load(folder: Path) -> None:
    models.load(prepared(folder), CPU, torch.float32)


def store(folder: Path, tensors: Tensors, name: str = "model.safetensors") -> None:
    save_file(tensors, folder / name, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64])
@pytest.mark.parametrize("pickled", [False, True])
def test_weights_that_are_no_floats(checkpoint: Path, kind: torch.dtype, pickled: bool) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[UP] = tensors[UP].to(kind)
    if pickled:
        (checkpoint / "model.safetensors").unlink()
        torch.save(tensors, checkpoint / "pytorch_model.bin")
    else:
        store(checkpoint, tensors)
    with pytest.raises(ModelError, match=r"stores .*\.up_proj\.weight as .*, not"):
        prepared(checkpoint)


@pytest.mark.parametrize("name", ["embed_tokens.weight", f"model.{TABLE}"])
def test_a_tensor_under_two_names(checkpoint: Path, name: str) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    store(checkpoint, {**tensors, name: 2 * tensors[TABLE]})
    with pytest.raises(ModelError, match=r"embed_tokens\.weight also as model\..*only one is read"):
        load(checkpoint)
    with pytest.raises(ModelError, match="only one is read"):
        load_pruned(checkpoint)


def test_a_tensor_in_two_shards(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    parts = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    store(checkpoint, {TABLE: tensors.pop(TABLE)}, parts[0])
    homes = {TABLE: parts[0], **dict.fromkeys(tensors, parts[1])}
    store(checkpoint, {**tensors, TABLE: torch.zeros(256, 32)}, parts[1])
    index = {"metadata": {}, "weight_map": homes}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"embed_tokens\.weight is in .*-00002.* and in .*-00001"):
        prepared(checkpoint)


def test_rotary_frequencies_of_another_base(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    store(checkpoint, {**tensors, name: 500000 ** -(torch.arange(4) / 4)})
    with pytest.raises(ModelError, match=r"rotary frequencies .* not those of the configuration"):
        load(checkpoint)


def test_shapes_that_the_configuration_does_not_give(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    store(checkpoint, {**tensors, UP: tensors[UP].T.contiguous()})
    with pytest.raises(ModelError, match=r"up_proj\.weight is \(32, 48\), not \(48, 32\)"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors.index.json", {"weight_map": [1]}, "no weight_map of names to files"),
        ("config.json", {"model_type": "llama", "quantization_config": [1]}, r"\(unknown\)"),
    ],
)
def test_json_of_another_form(checkpoint: Path, file: str, content: Any, message: str) -> None:
    (checkpoint / file).write_text(json.dumps(content))
    if "index" in file:
        (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=message):
        prepared(checkpoint)
