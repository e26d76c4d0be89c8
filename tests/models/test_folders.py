"""Checkpoints in folders: loaded as they are, refused with a reason when they are not whole."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prepared import CPU, logits, prepared
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keepset import models
from keepset.errors import ModelError
from keepset.settings import Model


def test_a_local_folder_is_used_in_place(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    (checkpoint / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    monkeypatch.chdir(checkpoint.parent)
    info = models.prepare("mine", Model(path="mine", origin="specimen"), Path("results"))
    assert json.loads(json.dumps(info)) == info
    expected = tiny_model("llama")
    assert info == {
        "name": "mine",
        "source": {
            "path": "mine",
            "bos": "auto",
            "origin": "specimen",
            "trust_remote_code": False,
        },
        "origin": "specimen",
        "checkpoint": str(checkpoint),
        "revision": None,
        "trust_remote_code": False,
        "license": "mit",
        "fingerprint": info["fingerprint"],
        "architecture": "LlamaForCausalLM",
        "model_type": "llama",
        "activation": "silu",
        "n_parameters": expected.num_parameters(),
        "vocab_size": 260,
        "max_positions": 512,
        "bos": None,
        "tokenizer": None,
    }
    assert not Path("results").exists()
    model, tokenizer = models.load(info, CPU, torch.float32)
    assert torch.equal(logits(model), logits(expected))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer("né").input_ids == models.load_tokenizer(info)("né").input_ids
    spans = tokenizer("a b", return_offsets_mapping=True).offset_mapping
    assert spans == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_loaded_in_the_asked_dtype(checkpoint: Path, dtype: torch.dtype) -> None:
    model, _ = models.load(prepared(checkpoint), CPU, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("family", ["gpt2", "opt", "mamba2", "zamba2"])
def test_tied_and_unusual_families_survive(
    family: str,
    tmp_path: Path,
    tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    model = tiny_model(family)
    models.save(model, tiny_tokenizer, tmp_path / "mine")
    info = prepared(tmp_path / "mine")
    assert info["n_parameters"] == model.num_parameters()
    assert torch.equal(logits(models.load(info, CPU, torch.float32)[0]), logits(model))


def test_the_fingerprint_follows_the_contents_alone(checkpoint: Path) -> None:
    first = prepared(checkpoint)["fingerprint"]
    (checkpoint / "notes.txt").write_text("unrelated")
    moved = checkpoint.rename(checkpoint.with_name("moved"))
    assert prepared(moved)["fingerprint"] == first
    weights = moved / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert prepared(moved)["fingerprint"] != first


def _edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        content = {**json.loads(path.read_text()), **changes}
        kept = {key: value for key, value in content.items() if value is not None}
        path.write_text(json.dumps(kept))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, r"models\.mine\.path: .*mine does not exist"),
        (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json is not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), r"config\.json is not a JSON object"),
        (lambda f: (f / "model.safetensors").unlink(), r"no weights \(model\.safetensors or"),
        (lambda f: os.truncate(f / "model.safetensors", 9000), "model.safetensors is truncated"),
        (lambda f: os.truncate(f / "model.safetensors", 3), "model.safetensors is truncated"),
        (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot load the tokenizer"),
        (_edit_config(model_type=None), "names no model_type"),
        (_edit_config(model_type="brandnew"), "does not know model type 'brandnew'"),
        (_edit_config(model_type="t5"), "cannot build the model .*T5Config"),
    ],
)
def test_a_damaged_folder_is_refused(
    checkpoint: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(checkpoint)
    with pytest.raises(ModelError, match=message):
        prepared(checkpoint)


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(
        ModelError, match=r"model\.onnx is neither a checkpoint folder nor a \.gguf"
    ):
        prepared(tmp_path / "model.onnx")


def test_a_checkpoint_that_lacks_parameters_is_refused(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 parameters.*layers\.1\.mlp\.up_proj\.weight"):
        models.load(prepared(checkpoint), CPU, torch.float32)


def test_a_checkpoint_that_went_away(checkpoint: Path) -> None:
    info = prepared(checkpoint)
    shutil.rmtree(checkpoint)
    with pytest.raises(ModelError, match=r"models\.mine: no checkpoint folder at"):
        models.load(info, CPU, torch.float32)


def test_shards(checkpoint: Path, tiny_model: Callable[..., PreTrainedModel]) -> None:
    (checkpoint / "model.safetensors").unlink()
    tiny_model("llama").save_pretrained(checkpoint, max_shard_size="40KB")
    shards = sorted(checkpoint.glob("model-*.safetensors"))
    assert len(shards) > 1
    model, _ = models.load(prepared(checkpoint), CPU, torch.float32)
    assert torch.equal(logits(model), logits(tiny_model("llama")))
    shards[1].unlink()
    with pytest.raises(ModelError, match=f"shard .*{shards[1].name} is missing"):
        prepared(checkpoint)


class _Malice:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.proof,))


def test_pickled_weights_are_read_without_running_them(
    checkpoint: Path, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    (checkpoint / "model.safetensors").unlink()
    weights = tiny_model("llama").state_dict()
    torch.save(weights, checkpoint / "pytorch_model.bin")
    info = prepared(checkpoint)
    model, _ = models.load(info, CPU, torch.float32)
    assert torch.equal(logits(model), logits(tiny_model("llama")))
    proof = checkpoint / "proof"
    torch.save({**weights, "extra": _Malice(proof)}, checkpoint / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"models\.mine: cannot load"):
        models.load(info, CPU, torch.float32)
    assert not proof.exists()


def test_code_that_comes_with_a_model_runs_only_on_request(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
        from transformers import LlamaConfig, LlamaForCausalLM

        class OwnConfig(LlamaConfig):
            model_type = "own_llama"

        class OwnModel(LlamaForCausalLM):
            config_class = OwnConfig
    """
    (checkpoint / "own.py").write_text(textwrap.dedent(code))
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    _edit_config(model_type="own_llama", auto_map=auto_map)(checkpoint)
    cache = str(checkpoint.parent / "code")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    monkeypatch.setattr(sys, "path", [cache, *sys.path])
    with pytest.raises(ModelError, match=r"models\.mine\.trust_remote_code: .*'own_llama'"):
        prepared(checkpoint)
    info = prepared(checkpoint, trust_remote_code=True)
    assert info["architecture"] == "OwnModel"
    assert type(models.load(info, CPU, torch.float32)[0]).__name__ == "OwnModel"
    (checkpoint / "own.py").write_text(textwrap.dedent(code) + "\n# changed\n")
    assert prepared(checkpoint, trust_remote_code=True)["fingerprint"] != info["fingerprint"]


# Saving


def test_saving_is_all_or_nothing(
    tmp_path: Path,
    tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, model = tmp_path / "mine", tiny_model("llama")
    leftover = tmp_path / ".mine.partial"
    leftover.mkdir()
    (leftover / "stale.json").touch()
    models.save(model, tiny_tokenizer, folder)
    before = sorted(path.name for path in folder.iterdir())
    assert "stale.json" not in before

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tiny_tokenizer), "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        models.save(model, tiny_tokenizer, folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
