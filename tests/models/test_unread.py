"""What lies in a checkpoint folder and would not be read, or is read and not there: refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from prepared import CPU, logits, prepared
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keepset import models
from keepset.errors import ModelError

Factory = Callable[..., PreTrainedModel]


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, **changes: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), **changes}, path, metadata={"format": "pt"})


def load(folder: Path, dtype: torch.dtype = torch.float32, **source: Any) -> PreTrainedModel:
    return models.load(prepared(folder, **source), CPU, dtype)[0]


# Tensors


def test_weights_that_the_configuration_does_not_speak_of(
    tiny_model: Factory, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    models.save(tiny_model("llama", attention_bias=True), tiny_tokenizer, tmp_path / "mine")
    edit_config(tmp_path / "mine", attention_bias=False)
    with pytest.raises(
        ModelError,
        match=r"8 tensors that LlamaForCausalLM does not read: .*k_proj\.bias",
    ):
        load(tmp_path / "mine")


def test_layers_that_the_configuration_does_not_count(checkpoint: Path) -> None:
    edit_config(checkpoint, num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"9 tensors .* does not read: model\.layers\.1\."):
        load(checkpoint)


def test_scales_beside_a_weight(checkpoint: Path) -> None:
    edit_weights(checkpoint, **{"model.layers.0.mlp.down_proj.weight_scale": torch.ones(1)})
    with pytest.raises(ModelError, match=r"down_proj\.weight_scale; .* or they are quantised"):
        load(checkpoint)


def test_integers_in_the_place_of_weights(checkpoint: Path) -> None:
    whole = torch.ones(32, 64, dtype=torch.int8)
    edit_weights(checkpoint, **{"model.layers.0.mlp.down_proj.weight": whole})
    with pytest.raises(ModelError, match=r"stores .*down_proj\.weight as I8, not as"):
        prepared(checkpoint)


def test_constants_that_older_releases_stored(checkpoint: Path) -> None:
    expected = logits(load(checkpoint))
    old = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": 10000 ** -(torch.arange(4) / 4),
        "model.layers.0.attn.masked_bias": torch.tensor(-1e4),
        "model.position_ids": torch.arange(8),
    }
    edit_weights(checkpoint, **old)
    assert torch.equal(logits(load(checkpoint)), expected)


def test_an_output_layer_beside_a_tied_one(
    tiny_model: Factory, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    tied = tiny_model("llama", tie_word_embeddings=True)
    models.save(tied, tiny_tokenizer, tmp_path / "mine")
    table = load_file(tmp_path / "mine/model.safetensors")["model.embed_tokens.weight"]
    edit_weights(tmp_path / "mine", **{"lm_head.weight": table.clone()})
    assert torch.equal(logits(load(tmp_path / "mine")), logits(tied))


# Files


def test_an_index_left_beside_whole_weights(checkpoint: Path) -> None:
    expected, name = logits(load(checkpoint)), prepared(checkpoint)["fingerprint"]
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    (checkpoint / "model-00001-of-00002.safetensors").write_bytes(b"left over")
    assert torch.equal(logits(load(checkpoint)), expected)
    assert prepared(checkpoint)["fingerprint"] == name


def test_an_adapter_is_not_passed_over(checkpoint: Path) -> None:
    (checkpoint / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"adapter_config\.json is of an adapter.*; merge it"):
        prepared(checkpoint)


def test_weights_under_another_name(checkpoint: Path) -> None:
    edit_config(checkpoint, transformers_weights="other.safetensors")
    with pytest.raises(ModelError, match=r"names other weights, other\.safetensors"):
        prepared(checkpoint)


# Quantised weights


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors"])
def test_quantised_weights_are_refused(checkpoint: Path, method: str) -> None:
    edit_config(checkpoint, quantization_config={"quant_method": method})
    with pytest.raises(ModelError, match=rf"are quantised \({method}\)"):
        prepared(checkpoint)


def test_float8_weights_are_read_in_float32_alone(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    scaled: dict[str, torch.Tensor] = {}
    rounded: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if "proj" in name:
            scale = tensor.abs().max() / 448
            scaled[name] = (tensor / scale).to(torch.float8_e4m3fn)
            scaled[f"{name}_scale_inv"] = scale.reshape(1, 1)
            rounded[name] = scaled[name].float() * scale
    edit_weights(checkpoint, **rounded)
    expected = logits(load(checkpoint))
    edit_weights(checkpoint, **scaled)
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    edit_config(checkpoint, quantization_config=fp8)
    assert torch.allclose(logits(load(checkpoint)), expected, atol=1e-4)
    with pytest.raises(ModelError, match=r"are torch\.float32 after .*; set dtype: float32"):
        load(checkpoint, torch.bfloat16)


# Settings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sliding_window", 16),
        ("final_logit_softcapping", 30.0),
        ("logit_scale", 0.25),
        ("embedding_multiplier", 12.0),
        ("clip_qkv", 8.0),
        ("alibi", True),
        ("use_parallel_residual", True),
        ("partial_rotary_factor", 0.5),
        ("activation_function", "relu"),
        ("rope_theta", 500000.0),
    ],
)
def test_a_setting_that_the_model_ignores(checkpoint: Path, key: str, value: Any) -> None:
    edit_config(checkpoint, **{key: value})
    with pytest.raises(ModelError, match=rf"LlamaForCausalLM ignores {key}: {value} of config"):
        prepared(checkpoint)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sliding_window", None),
        ("logit_scale", 1.0),
        ("alibi", False),
        ("partial_rotary_factor", 1.0),
        ("activation_function", "silu"),
        ("layer_norm_eps", 1e-6),
        ("rope_theta", 10000.0),
        ("unsloth_version", "2026.1"),
    ],
)
def test_a_setting_that_changes_nothing(checkpoint: Path, key: str, value: Any) -> None:
    expected = logits(load(checkpoint))
    edit_config(checkpoint, **{key: value})
    assert torch.equal(logits(load(checkpoint)), expected)


def test_an_epsilon_under_the_key_of_another_family(checkpoint: Path) -> None:
    edit_config(checkpoint, layer_norm_eps=0.01)
    load(checkpoint)  # its own key is there too
    path = checkpoint / "config.json"
    content = json.loads(path.read_text())
    del content["rms_norm_eps"]
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"LlamaForCausalLM ignores layer_norm_eps: 0\.01"):
        prepared(checkpoint)


def test_an_older_name_of_rotary_scaling(checkpoint: Path, tiny_model: Factory) -> None:
    edit_config(checkpoint, rope_parameters=None, rope_scaling={"type": "linear", "factor": 4.0})
    scaled = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    expected = logits(tiny_model("llama", rope_parameters=scaled))
    assert torch.equal(logits(load(checkpoint)), expected)


def test_a_rotary_factor_without_its_kind(checkpoint: Path) -> None:
    edit_config(checkpoint, rope_parameters=None, rope_scaling={"factor": 4.0})
    with pytest.raises(ModelError, match=r"ignores rope_scaling: .*'factor': 4\.0"):
        prepared(checkpoint)


# Tokenizers


def test_a_tokenizer_that_is_named(
    checkpoint: Path, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"holds no tokenizer .*name one .*--tokenizer"):
        prepared(checkpoint)
    tiny_tokenizer.save_pretrained(tmp_path / "words")
    info = prepared(checkpoint, tokenizer=str(tmp_path / "words"))
    assert info["tokenizer"] == {"path": str(tmp_path / "words")}
    assert (
        models.load(info, CPU, torch.float32)[1]("né").input_ids == tiny_tokenizer("né").input_ids
    )
    config = tmp_path / "words/tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token": "<unk>"}))
    changed = prepared(checkpoint, tokenizer=str(tmp_path / "words"))
    assert changed["fingerprint"] != info["fingerprint"]


def test_a_bos_that_the_model_has_no_row_for(
    tiny_model: Factory, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    small = tiny_model("llama", vocab_size=1)
    models.save(small, tiny_tokenizer, tmp_path / "mine")
    with pytest.raises(ModelError, match=r"models\.mine\.bos: .* has id 1, and .* 1 tokens"):
        prepared(tmp_path / "mine", bos=True)


def test_a_sentencepiece_model_alone(checkpoint: Path, tmp_path: Path) -> None:
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    (checkpoint / "special_tokens_map.json").unlink(missing_ok=True)
    (tmp_path / "text.txt").write_text("the river and the stone and the winter garden\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(checkpoint / "tokenizer"),
        vocab_size=60,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (checkpoint / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    own = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    tokenizer = models.load_tokenizer(prepared(checkpoint))
    ids = tokenizer("the winter river", add_special_tokens=False).input_ids
    assert ids == own.encode("the winter river")
