"""Settings of a config.json that the model's class ignores, though they change what is computed.

transformers keeps every key that it finds, known or not. A key of another family is then no more
than a note: a window, a cap or a scale that nobody applies.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from transformers import PreTrainedModel

from keepset.errors import ModelError
from keepset.sites.families import ACTIVATION_KEYS

# Keys of common families that no tensor shows, and the values that say that there is no such part.
_NO_PART: dict[str, tuple[Any, ...]] = {
    "alibi": (False,),
    "attention_multiplier": (1, 1.0),
    "attn_logit_softcapping": (0, 0.0),
    "clip_qkv": (0, 0.0),
    "embedding_multiplier": (1, 1.0),
    "final_logit_softcapping": (0, 0.0),
    "logit_scale": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "parallel_attn": (False,),
    "query_pre_attn_scalar": (),
    "residual_multiplier": (1, 1.0),
    "rope_scaling": ({},),
    "scale_depth": (),
    "scale_emb": (1, 1.0),
    "sliding_window": (0, -1),
    "use_parallel_residual": (False,),
}
_PARTIAL = ("partial_rotary_factor", "rotary_pct")
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon",
             "norm_eps", "norm_epsilon")  # fmt: skip
_THETAS = ("rope_theta", "rotary_emb_base")


def check_settings(where: str, content: Mapping[str, Any], model: PreTrainedModel) -> None:
    """Refuse settings that the model would not follow.

    Args:
        where: the configuration key that error messages begin with.
        content: the content of config.json.
        model: the model that transformers builds of it, weights or not.

    Raises:
        ModelError: names the keys and their values.
    """
    config: Any = model.config.get_text_config()
    stated = content.get("text_config") or content
    known = {field.name for field in fields(type(config))} | set(config.attribute_map)
    if "rope_parameters" in known:
        known.add("rope_scaling")  # its older name
    ignored = {
        key: stated[key]
        for key, no_part in _NO_PART.items()
        if key not in known and stated.get(key) is not None and stated[key] not in no_part
    }
    if stated.get("use_sliding_window") is False:
        ignored.pop("sliding_window", None)
    ignored |= _under_other_keys(stated, config, known, ACTIVATION_KEYS)
    if not known.intersection(stated, _EPSILONS):
        ignored |= _under_other_keys(stated, config, known, _EPSILONS)
    ignored |= _bases(stated, config)
    ignored |= _partial_rotation(stated, config, model)
    ignored |= _factors(config)
    if ignored:
        settings = ", ".join(f"{key}: {value}" for key, value in ignored.items())
        raise ModelError(
            f"{where}: {type(model).__name__} ignores {settings} of config.json; it names the wrong"
            " model_type, or the keys are to be taken out"
        )


def _under_other_keys(
    stated: Mapping[str, Any], config: Any, known: Collection[str], keys: Collection[str]
) -> dict[str, Any]:
    """Activations, or epsilons, under a key of another family, where they are not those in use."""
    used = {getattr(config, key, None) for key in keys if key in known} - {None}
    others = {key: stated.get(key) for key in keys if key not in known}
    return {key: value for key, value in others.items() if used and value and value not in used}


def _rotary_parts(config: Any) -> list[Mapping[str, Any]]:
    """The rotary parameters; those of each kind of layer, where kinds differ."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [part for part in (rope, *rope.values()) if isinstance(part, Mapping)]


def _bases(stated: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """A base of the rotary frequencies that is none of those in use."""
    used = {part["rope_theta"] for part in _rotary_parts(config) if part.get("rope_theta")}
    bases = {key: stated.get(key) for key in _THETAS}
    return {key: base for key, base in bases.items() if used and base and base not in used}


def _factors(config: Any) -> dict[str, Any]:
    """A factor of rotary scaling without a kind of scaling."""
    unscaled = (part for part in _rotary_parts(config) if part.get("rope_type") == "default")
    unread = next((part for part in unscaled if part.get("factor") not in (None, 1)), None)
    return {} if unread is None else {"rope_scaling": dict(unread)}


def _partial_rotation(
    stated: Mapping[str, Any], config: Any, model: PreTrainedModel
) -> dict[str, Any]:
    """The share of each head that is rotated, where the model rotates another."""
    shares = {key: stated[key] for key in _PARTIAL if stated.get(key) is not None}
    rotated = {
        2 * tensor.shape[0] for name, tensor in model.named_buffers() if name.endswith("inv_freq")
    }
    if not shares or len(rotated) != 1:
        return {}
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {key: share for key, share in shares.items() if int(share * size) not in rotated}
