"""What a GGUF header says of the model: put into the configuration, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

from keepset.errors import ModelError

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor of Llama 3's rotary scaling: what each frequency is divided by."""

_READ: Mapping[str, Mapping[str, str | None]] = GGUF_TO_TRANSFORMERS_MAPPING["config"]
# Ways to split text that are GPT-2's, but for digits, of which such vocabularies have no pairs.
_GPT2_SPLITS = ("default", "gpt-2", "mpt", "olmo", "jais", "smollm", "starcoder", "refact",
                "command-r", "codeshell", "exaone", "granite-docling", "trillion")  # fmt: skip
_EPSILON_KEYS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
# They change nothing that is computed, or say what the tensors' shapes say too.
_BENIGN = {
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "vocab_size",
    "tensor_data_layout",
    "rope.scaling.finetuned",
}
# The value that says that the model has no such part.
_ABSENT: dict[str, Any] = {
    "attention.causal": True,
    "attention.head_count": 0,
    "attention.head_count_kv": 0,
    "attention.clamp_kqv": 0,
    "attention.max_alibi_bias": 0,
    "attention.shared_kv_layers": 0,
    "attn_logit_softcapping": 0,
    "final_logit_softcapping": 0,
    "attention.sliding_window": 0,
    "embedding_scale": 1,
    "expert_count": 0,
    "expert_used_count": 0,
    "leading_dense_block_count": 0,
    "logit_scale": 1,
    "nextn_predict_layers": 0,
    "residual_scale": 1,
    "rope.scaling.attn_factor": 1,
    "rope.scaling.yarn_attn_factor": 1,
    "rope.scaling.yarn_ext_factor": 1,
    "ssm.dt_b_c_rms": False,
}
# What a header may say beside where nothing is scaled.
_UNSCALED = (
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scale_linear",
)
_LLAMA_CPP_BASE = 10000.0
"""What llama.cpp takes for the base of the rotary frequencies where a header does not say it."""
_EPSILONS = (
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "norm_eps",
    "norm_epsilon",
)


def apply_header(
    what: str, config: Any, metadata: Mapping[str, Any], factors: Tensor | None
) -> None:
    """Complete a configuration by what transformers did not take from the header, in place.

    Args:
        what: the model and the file; error messages begin with it.
        config: transformers' configuration of the file.
        metadata: the header's keys and values.
        factors: the tensor `ROPE_FACTORS`, where the file has it: (head_dim / 2,).

    Raises:
        ModelError: a key says something that the model would not do, or the epsilon of the norms
            is missing.
    """
    architecture = metadata["general.architecture"]
    prefix = f"{architecture}."
    stated = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
    _apply_sizes(config, stated)
    _apply_rope(what, config, stated, factors)
    if _epsilon(config) is not None and not any(key in stated for key in _EPSILON_KEYS):
        raise ModelError(
            f"{what}: the header lacks {prefix}{_EPSILON_KEYS[0]}; convert the checkpoint again"
        )
    read = {key for key, name in _READ.get(architecture, {}).items() if name is not None}
    ignored = [
        f"{prefix}{key} = {value}"
        for key, value in stated.items()
        if key not in read | _BENIGN and not _agrees(config, key, value)
    ]
    if ignored:
        raise ModelError(
            f"{what}: transformers' {config.model_type} would ignore {', '.join(ignored)} of the"
            " header, and so be another model; use the checkpoint that the file was made of"
        )


def check_tokenizer(what: str, metadata: Mapping[str, Any], tokenizer: Any) -> None:
    """Refuse a tokenizer that does not split text as the header says.

    Args:
        what: the model and the file; error messages begin with it.
        metadata: the header's keys and values.
        tokenizer: the tokenizer that transformers made of it.

    Raises:
        ModelError: it splits otherwise.
    """
    kind, split = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind == "gpt2" and split not in {None, *_GPT2_SPLITS, *GGUF_PRE_TOKENIZER_SPLITS}:
        ignored = f"tokenizer.ggml.pre = {split}"
    elif (
        kind == "llama"
        and metadata.get("tokenizer.ggml.add_space_prefix") is False
        and (tokenizer.tokenize("a")[0].startswith("\u2581"))
    ):
        ignored = "tokenizer.ggml.add_space_prefix = False"
    else:
        return
    raise ModelError(
        f"{what}: transformers would ignore {ignored} of the header, and so split texts otherwise;"
        " name the model's tokenizer (`tokenizer`, on the command line --tokenizer)"
    )


def _apply_sizes(config: Any, stated: Mapping[str, Any]) -> None:
    if "attention.key_length" in stated and getattr(config, "head_dim", None) is not None:
        config.head_dim = stated["attention.key_length"]
    window = stated.get("attention.sliding_window")
    if window and hasattr(config, "sliding_window") and config.model_type == "phi3":
        config.sliding_window = window
    if config.model_type == "gpt2":
        config.n_positions = stated["context_length"]
        config.n_inner = stated.get("feed_forward_length")
    # llama.cpp knows these two by their depth; the header does not say it.
    if (config.model_type, config.num_hidden_layers) in (("gemma2", 46), ("gemma3_text", 62)):
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads


def _rope(config: Any) -> dict[str, Any] | None:
    """The rotary embedding's parameters; those of global attention where kinds of layers differ."""
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        return None
    nested: dict[str, Any] = parameters.get("full_attention", parameters)
    return nested


def _head_dim(config: Any) -> int:
    size = getattr(config, "head_dim", None)
    return int(size or config.hidden_size // config.num_attention_heads)


def _apply_rope(what: str, config: Any, stated: dict[str, Any], factors: Tensor | None) -> None:
    rope = _rope(config)
    if rope is None:
        return
    rope["rope_theta"] = stated.get("rope.freq_base", _LLAMA_CPP_BASE)
    if "rope.freq_base_swa" in stated and "sliding_attention" in config.rope_parameters:
        config.rope_parameters["sliding_attention"]["rope_theta"] = stated["rope.freq_base_swa"]
    if "rope.dimension_count" in stated and "partial_rotary_factor" in rope:
        rope["partial_rotary_factor"] = stated["rope.dimension_count"] / _head_dim(config)
    factor = stated.get("rope.scaling.factor") or stated.get("rope.scale_linear") or 1.0
    kind = stated.get("rope.scaling.type", "linear")
    if factor == 1 and kind in ("none", "linear"):
        for key in _UNSCALED:
            stated.pop(key, None)
    elif kind == "linear":
        rope |= {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        original = stated.get("rope.scaling.original_context_length", stated["context_length"])
        rope |= {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
        }
        for key in ("beta_fast", "beta_slow"):
            if f"rope.scaling.yarn_{key}" in stated:
                rope[key] = stated[f"rope.scaling.yarn_{key}"]
    if factors is not None and not bool((factors == 1).all()):
        rope |= _llama3(what, rope["rope_theta"], factors.double())


def _llama3(what: str, theta: float, factors: Tensor) -> dict[str, Any]:
    """Llama 3's settings, found from what each frequency is divided by.

    Between the wavelengths original / 4 and original, 1 / factor rises linearly in original /
    wavelength; one such frequency gives the original length (arXiv:2407.21783, transformers'
    `rope_type: llama3`). Whether these settings give the factors back is checked.

    Raises:
        ModelError: they do not.
    """
    low, high, largest = 1.0, 4.0, float(factors.max())
    waves = 2 * math.pi * theta ** (torch.arange(len(factors)).double() / len(factors))
    share = (1 / factors - 1 / largest) / (1 - 1 / largest)
    between = ((factors > 1) & (factors < largest)).nonzero()[:, 0]
    if len(between):
        n = int(between[0])
        original = round(float(waves[n] * (low + share[n] * (high - low))))
    else:  # any length between those that are divided and those that are not
        original = math.ceil(high * float((waves * (factors == 1)).max())) + 1
    smooth = ((original / waves - low) / (high - low)).clamp(0, 1)
    expected = 1 / ((1 - smooth) / largest + smooth)
    if not torch.allclose(expected, factors, rtol=1e-4, atol=0):
        raise ModelError(
            f"{what}: {ROPE_FACTORS} scales the rotary frequencies in a way that transformers has"
            " no settings for; use the checkpoint that the file was made of"
        )
    return {
        "rope_type": "llama3",
        "factor": largest,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _scaling(key: str) -> Callable[[Any], Any]:
    def value(config: Any) -> Any:
        return (_rope(config) or {}).get(key)

    return value


def _rotary_dimensions(config: Any) -> float:
    return _head_dim(config) * (_rope(config) or {}).get("partial_rotary_factor", 1.0)


def _epsilon(config: Any) -> float | None:
    return next((getattr(config, key) for key in _EPSILONS if hasattr(config, key)), None)


_USED: dict[str, Callable[[Any], Any]] = {
    "attention.head_count": lambda config: getattr(config, "num_attention_heads", None),
    "attention.head_count_kv": lambda config: getattr(
        config, "num_key_value_heads", getattr(config, "num_attention_heads", None)
    ),
    "attention.key_length": _head_dim,
    "attention.layer_norm_epsilon": _epsilon,
    "attention.layer_norm_rms_epsilon": _epsilon,
    "attention.max_alibi_bias": lambda config: 8.0 if config.model_type == "bloom" else 0,
    "attention.scale": lambda config: _head_dim(config) ** -0.5,
    "attention.sliding_window": lambda config: getattr(config, "sliding_window", None),
    "attention.sliding_window_pattern": lambda config: [
        kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or ()
    ],
    "attention.value_length": _head_dim,
    "attn_logit_softcapping": lambda config: getattr(config, "attn_logit_softcapping", None),
    "final_logit_softcapping": lambda config: getattr(config, "final_logit_softcapping", None),
    "rope.dimension_count": _rotary_dimensions,
    "rope.freq_base": _scaling("rope_theta"),
    "rope.freq_base_swa": lambda config: (
        (getattr(config, "rope_parameters", None) or {})
        .get("sliding_attention", {})
        .get("rope_theta")
    ),
    "rope.scale_linear": _scaling("factor"),
    "rope.scaling.factor": _scaling("factor"),
    "rope.scaling.original_context_length": _scaling("original_max_position_embeddings"),
    "rope.scaling.type": _scaling("rope_type"),
    "rope.scaling.yarn_beta_fast": _scaling("beta_fast"),
    "rope.scaling.yarn_beta_slow": _scaling("beta_slow"),
    "use_parallel_residual": lambda config: getattr(config, "use_parallel_residual", None),
}
"""Key -> what the model of a configuration does about it."""


def _agrees(config: Any, key: str, value: Any) -> bool:
    used = _USED[key](config) if key in _USED else None
    if used is not None:
        return _equal(value, used)
    return key in _ABSENT and _equal(value, _ABSENT[key])


def _equal(value: Any, other: Any) -> bool:
    if isinstance(value, float) or isinstance(other, float):
        return math.isclose(value, other, rel_tol=1e-5)  # the header holds float32
    if isinstance(value, int) and isinstance(other, list):  # every how many layers differ
        value = [bool((n + 1) % value) for n in range(len(other))]
    return bool(value == other)
