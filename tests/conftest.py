"""Tiny models and tokenizers that every test may use; nothing here needs a network."""

from __future__ import annotations

import interpreter  # noqa: F401

# isort: split
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

# A busy machine is not a failure, and a test that fails now and then is worth nothing.
settings.register_profile("keepset", deadline=None, derandomize=True)
settings.load_profile("keepset")

VOCABULARY = 260
"""256 bytes and four special tokens: the size of every tiny model's vocabulary."""

_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_GPT = {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": 512}
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
_MAMBA1: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "expand": 2,
    "state_size": 8,
    "time_step_rank": 4,
}
_INNER_MAMBA1: dict[str, Any] = {"mamba_d_state": 8, "mamba_expand": 2, "mamba_dt_rank": 4}
_DELTA: dict[str, Any] = {
    **_COMMON,
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
_SHAPES: dict[str, dict[str, Any]] = {
    "olmo_hybrid": _DELTA,
    "qwen3_5_text": _DELTA,
    "qwen3_5_moe_text": {**_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 12},
    "lfm2_moe": {
        **_COMMON,
        **_EXPERTS,
        "layer_types": ["conv", "full_attention"],
        "num_dense_layers": 2,
    },
    "qwen3_moe": {**_COMMON, **_EXPERTS, "head_dim": 8},
    "qwen3_next": {**_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 12},
    "bailing_hybrid": {
        **_COMMON,
        "num_key_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention"],
        "mlp_layer_types": ["dense", "dense"],
        "linear_num_heads": 4,
        "linear_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_token": 2,
        "num_expert_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 12,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "q_lora_rank": None,
    },
    "kimi_linear": {
        **_COMMON,
        "num_key_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_heads": 4,
        "linear_head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "q_lora_rank": None,
        "n_group": 1,
        "topk_group": 1,
    },
    "bamba": {**_COMMON, **_MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {**_COMMON, **_MAMBA, "mamba_d_ssm": 64, "mlp_multipliers": [0.7, 0.9]},
    "granitemoehybrid": {
        **_COMMON,
        **_MAMBA,
        "shared_intermediate_size": 48,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "layer_types": ["mamba", "attention"],
    },
    "nemotron_h": {
        **_COMMON,
        "num_hidden_layers": None,
        "layers_block_type": ["mamba", "mlp", "attention", "mlp"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "ssm_state_size": 8,
        "chunk_size": 16,
        "head_dim": 8,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "codegen": {**_GPT, "rotary_dim": 4},
    "falcon": {
        "hidden_size": 32,
        "ffn_hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 512,
    },
    "gptj": {**_GPT, "rotary_dim": 4},
    "mamba2": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "expand": 2,
        "num_heads": 4,
        "head_dim": 16,
        "n_groups": 1,
        "state_size": 8,
        "chunk_size": 16,
    },
    "falcon_mamba": _MAMBA1,
    "jamba": {
        **_COMMON,
        **_INNER_MAMBA1,
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 2,
        "num_experts_per_tok": 1,
    },
    "mamba": _MAMBA1,
    "minimax": {
        **_COMMON,
        "num_hidden_layers": 4,
        "head_dim": 8,
        "block_size": 8,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    },
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "word_embed_proj_dim": 32,
    },
    "recurrent_gemma": {**_COMMON, "num_hidden_layers": 3, "head_dim": 8, "lru_width": 32},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    "zamba": {
        **_COMMON,
        **_INNER_MAMBA1,
        "num_hidden_layers": 6,
        "num_key_value_heads": 4,
        "n_mamba_heads": 2,
        "time_step_min": 0.5,
        "time_step_max": 2.0,
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
    },
    "zamba2": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 6,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "hybrid", "hybrid"],
        "num_mem_blocks": 2,
        "num_attention_heads": 4,
        "adapter_rank": 4,
        "use_shared_attention_adapter": True,
        "mamba_d_state": 8,
        "mamba_expand": 2,
        "n_mamba_heads": 4,
        "mamba_ngroups": 1,
        "chunk_size": 16,
    },
}


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where numba is not installed."""
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in [name for name in sys.modules if name.startswith("keepset.kernels.numba_")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def build_model(family: str, **overrides: Any) -> PreTrainedModel:
    """A random model of `family` (its config.model_type): the same weights at every call."""
    settings = {"vocab_size": VOCABULARY, "pad_token_id": 0, **_SHAPES.get(family, _COMMON)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **{**settings, **overrides})
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            # The usual initial scale hides mistakes: logits of a tiny model hardly depend on it.
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes, with offsets; every text can be encoded and decoded."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(special + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., PreTrainedModel]:
    """`tiny_model(family, **overrides)`: see `build_model`."""
    return build_model


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """See `build_tokenizer`."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with a tiny Llama and its tokenizer. Shared: copy before changing it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "llama"
    build_model("llama").save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder
