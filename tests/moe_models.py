"""Tiny mixtures of experts of many families."""

from __future__ import annotations

from typing import Any

E, K = 8, 2
_MOE: dict[str, Any] = {
    "num_experts": E,
    "num_local_experts": E,
    "n_routed_experts": E,
    "num_experts_per_tok": K,
    "moe_intermediate_size": 12,
    "n_group": 1,
    "topk_group": 1,
    "head_dim": 8,
}
_DEEPSEEK = {
    "head_dim": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3_moe": _MOE,
    "qwen2_moe": {**_MOE, "shared_expert_intermediate_size": 12},
    "mixtral": _MOE,
    "olmoe": _MOE,
    "gpt_oss": _MOE,
    "granitemoe": _MOE,
    "deepseek_v3": {**_MOE, **_DEEPSEEK},
    "glm4_moe": {**_MOE, "first_k_dense_replace": 1},
    "ernie4_5_moe": {**_MOE, "moe_num_experts": E, "moe_k": K},
    "lfm2_moe": {**_MOE, "layer_types": ["conv", "full_attention"], "num_dense_layers": 0},
    "minimax": _MOE,
}
NORMALISED = ("mixtral", "gpt_oss", "granitemoe", "deepseek_v3", "glm4_moe", "minimax")
"""Families whose router's weights of the chosen experts sum to one."""
