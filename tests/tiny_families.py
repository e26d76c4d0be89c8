"""A tiny model of every decoder-only family that transformers registers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 64),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim_model", "n_embed"), 32),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "dim_ff", "dff",
         "shared_intermediate_size", "feed_forward_size"), 24,
    ),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size",
         "moe_shared_expert_intermediate_size", "intermediate_size_mlp", "dense_intermediate_size",
         "expert_intermediate_size", "moe_shared_intermediate_size",
         "shared_expert_ffn_hidden_size"), 12,
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "num_global_key_value_heads"), 2),
    **dict.fromkeys(
        ("head_dim", "dim_head", "global_head_dim", "kv_channels", "swa_head_dim"), 8
    ),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4
    ),
    **dict.fromkeys(
        ("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token", "top_k_experts"), 2
    ),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_groups", "n_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length",
         "context_length"), 64,
    ),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim"), 8),
    "qk_rope_head_dim": 4,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    "sliding_window": 16,
    "hidden_size_per_layer_input": 8,
    "rotary_dim": 4,
    "lru_width": 32,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
"""Keys of configurations that make a model large, and what they are set to."""

_HEADS = {"num_key_value_heads": 4}
_LATENT = "axk1 axk2 deepseek_v2 glm4_moe_lite glm_moe_dsa minicpm3 youtu dots3_note_text"
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_expand": 2}
OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(_LATENT.split(), _HEADS),
    **{name: {**_HEADS, "head_dim": 4} for name in ("deepseek_v3", "deepseek_v32")},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"]},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"expand": 2, "num_heads": 4, "head_dim": 16, "n_groups": 1},
    "nemotron": _HEADS,
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10_000.0}
            for kind in ("full_attention", "sliding_attention")
        }
    },
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "num_mem_blocks": 1, "n_mamba_heads": 4, "mamba_ngroups": 1, "adapter_rank": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""What a family needs besides."""

COMPOSITES = {
    "fuyu": "persimmon",
    "gemma3": "gemma3_text",
    "gemma4_unified": "gemma4_unified_text",
    "got_ocr2": "qwen2",
    "moss_transcribe_diarize": "qwen3",
    "dots3_note": "dots3_note_text",
}
"""Models around the text model of another family, whose other parts are large: that one is run."""


def tiny_config(family: str) -> Any:
    """The family's configuration, small; that of other parts of a composite model, too."""
    return CONFIG_MAPPING[family](**_small(CONFIG_MAPPING[family], OVERRIDES.get(family, {})))


def _small(config_class: Any, overrides: dict[str, Any]) -> dict[str, Any]:
    known = set(getattr(config_class, "__dataclass_fields__", {}))
    known |= set(getattr(config_class, "attribute_map", {}).values())
    settings = {key: value for key, value in SIZES.items() if key in known}
    for name, part in getattr(config_class, "sub_configs", {}).items():
        if isinstance(part, type) and hasattr(part, "__dataclass_fields__"):
            more = overrides.get(name, OVERRIDES.get(getattr(part, "model_type", ""), {}))
            settings[name] = _small(part, more)
    return settings | {
        k: v for k, v in overrides.items() if k not in settings or not isinstance(v, dict)
    }


def tiny_family(family: str) -> PreTrainedModel:
    """A random model of a family, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(family))
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)
