"""Original Mamba-2 checkpoints (state-spaces/mamba2-*), converted to transformers' form.

The package mamba_ssm wrote them: config.json holds that package's arguments instead of a model
type, the weights have its names, and there is no tokenizer. The package itself is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM, PreTrainedTokenizerBase

from keepset.errors import ModelError
from keepset.models.checkpoint import CONFIG, save
from keepset.sites.size_formulas import as_transformers

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_READ = {"layer", "d_state", "d_conv", "expand", "headdim", "ngroups", "chunk_size", "bias",
         "conv_bias", "dt_limit"}  # fmt: skip
# How a training starts, and how it is spread over devices: of no consequence to trained weights.
_TRAINING = {"A_init_range", "conv_init", "dt_min", "dt_max", "dt_init_floor", "use_mem_eff_path",
             "process_group", "sequence_parallel", "device", "dtype"}  # fmt: skip
# The only values that transformers' Mamba-2 has.
_FIXED = {"D_has_hdim": False, "activation": "swish", "d_ssm": None,
          "learnable_init_states": False, "norm_before_gate": False, "rmsnorm": True}  # fmt: skip


def is_original(folder: Path) -> bool:
    """Whether a folder holds a checkpoint of mamba_ssm, of any of its layers."""
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "ssm_cfg" in content and "model_type" not in content


def convert(where: str, folder: Path, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write the checkpoint to `output` as transformers' Mamba2ForCausalLM, in its own dtype.

    Args:
        where: the configuration key that error messages begin with.
        folder: the original checkpoint.
        tokenizer: the tokenizer that it was trained with.
        output: the folder to write, whole or not at all.

    Raises:
        ModelError: weights are missing, or the model has parts that Mamba2ForCausalLM lacks.
    """
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    state = _weights(where, folder)
    name = "backbone.embedding.weight"
    if name not in state:
        raise ModelError(f"{where}: {folder} holds no {name}; is this a checkpoint of mamba_ssm?")
    state["backbone.embeddings.weight"] = state.pop(name)
    embeddings = state["backbone.embeddings.weight"]
    config = _config(where, content, len(embeddings), tokenizer)
    with torch.device("meta"):
        model = Mamba2ForCausalLM(config)
    if config.tie_word_embeddings:
        if not torch.equal(state.get("lm_head.weight", embeddings), embeddings):
            raise ModelError(
                f"{where}: {folder} ties lm_head.weight to {name}, and the two differ; set"
                " tie_embeddings to false in its config.json"
            )
        state["lm_head.weight"] = embeddings
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{where}: {folder} does not fit Mamba-2: {reason}") from None
    model.tie_weights()
    save(model, tokenizer, output)


def _weights(where: str, folder: Path) -> dict[str, Tensor]:
    for name in _WEIGHTS:
        path = folder / name
        if not path.is_file():
            continue
        if path.suffix == ".safetensors":
            return load_file(path)
        try:
            weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{where}: {path} cannot be read ({reason}); copy it again") from None
        return weights
    raise ModelError(f"{where}: {folder} holds no weights ({' or '.join(_WEIGHTS)})")


def _config(
    where: str, content: Mapping[str, Any], vocabulary: int, tokenizer: PreTrainedTokenizerBase
) -> Mamba2Config:
    ssm: dict[str, Any] = content.get("ssm_cfg") or {}
    inner = ssm.get("expand", 2) * content["d_model"]
    fixed = {**_FIXED, "d_ssm": inner} if ssm.get("d_ssm") == inner else _FIXED
    unsupported = [
        *(
            f"ssm_cfg.{key} = {value}"
            for key, value in ssm.items()
            if key not in _READ | _TRAINING and not (key in fixed and value == fixed[key])
        ),
        *(key for key in ("attn_layer_idx", "d_intermediate") if content.get(key)),
        *(["rms_norm"] if not content.get("rms_norm", True) else []),
    ]
    if ssm.get("layer", "Mamba1") != "Mamba2":
        raise ModelError(
            f"{where}: the checkpoint's layers are {ssm.get('layer', 'Mamba1')}, not Mamba2; only"
            " Mamba-2 has the state that is studied here"
        )
    if unsupported:
        raise ModelError(
            f"{where}: {', '.join(unsupported)} of the checkpoint's config.json have no counterpart"
            " in transformers' Mamba-2; use a checkpoint without them"
        )
    return Mamba2Config(
        **as_transformers(content, vocabulary),
        use_bias=ssm.get("bias", False),
        use_conv_bias=ssm.get("conv_bias", True),
        time_step_limit=tuple(ssm.get("dt_limit", (0.0, float("inf")))),
        residual_in_fp32=content.get("residual_in_fp32", True),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
