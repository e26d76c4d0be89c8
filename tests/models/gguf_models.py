"""GGUF files of tiny Llama models, as llama.cpp lays them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import PreTrainedModel

# A file has merges, so there is one; it takes the place of the last byte.
_WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
_WORDS[-1] = "th"
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _interleaved(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k, in the order in which llama.cpp rotates them."""
    half = weights.shape[0] // heads // 2
    return weights.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weights.shape)


def write_llama(
    path: Path,
    model: PreTrainedModel,
    *,
    header: Mapping[str, Any] | None = None,
    extra: Mapping[str, torch.Tensor] | None = None,
    skip: Sequence[str] = (),
    unsaid: Sequence[str] = (),
    split: int = 0,
) -> Path:
    """Write a Llama.

    Args:
        path: The file; with `split`, its name without the numbers of the parts.
        model: The model.
        header: More keys, without the architecture, and values; int, float, bool or str.
        extra: More tensors.
        skip: Names of tensors that are left out.
        unsaid: Keys of the header, without the architecture, that are left out.
        split: Tensors per part; 0 writes one file.
    """
    config: Any = model.config
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(_WORDS)
    writer.add_token_types([3] * 4 + [1] * (len(_WORDS) - 4))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
    }
    for key, value in (header or {}).items():
        add[type(value)](key if key.startswith("tokenizer.") else f"llama.{key}", value)
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
        **{name: tensor.numpy() for name, tensor in (extra or {}).items()},
    }
    for layer in range(config.num_hidden_layers):
        for theirs, ours in _LAYER.items():
            tensors[f"blk.{layer}.{ours}.weight"] = state[f"model.layers.{layer}.{theirs}.weight"]
        for part, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            name = f"blk.{layer}.attn_{part}.weight"
            tensors[name] = _interleaved(tensors[name], heads)
    for name, values in tensors.items():
        if name not in skip:
            writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
    for key in unsaid:
        del writer.kv_data[0][f"llama.{key}"]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
