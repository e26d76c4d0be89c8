"""Where a model runs, and in which number format."""

from __future__ import annotations

import re

import torch

from keepset.errors import ModelError
from keepset.models.gpus import claim

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BF16_FLAGS = ("amx_bf16", "avx512_bf16")


def resolve_device(name: str) -> torch.device:
    """The device that the setting `device` means.

    Args:
        name: "auto" (cuda where there is one, else cpu), "cpu", "cuda" or "cuda:N". "auto" and
            "cuda" take a GPU that no other job has; indices count within CUDA_VISIBLE_DEVICES.

    Raises:
        ModelError: the device is not available, or the name is none of these.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise ModelError(f"device: {name!r} is not known; set auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        raise ModelError(f"device: {name} was asked for, but torch sees no GPU; set device: cpu")
    count = torch.cuda.device_count()
    index = claim(count) if match[1] is None else int(match[1])
    if index >= count:
        raise ModelError(
            f"device: {name} was asked for, but there are {count} GPUs; set cuda:0 to"
            f" cuda:{count - 1}"
        )
    return torch.device("cuda", index)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format that the setting `dtype` means on `device`.

    Args:
        name: "auto", "float32", "bfloat16" or "float16". auto is bfloat16 where the device
            multiplies matrices in it natively (CUDA; CPUs with AMX or AVX-512 BF16). Emulated
            bfloat16 is slower and less exact than float32.
        device: where the model will run.

    Raises:
        ModelError: the name is none of these.
    """
    if name == "auto":
        native = device.type == "cuda" or _cpu_has_bf16()
        return torch.bfloat16 if native else torch.float32
    if name not in _DTYPES:
        raise ModelError(f"dtype: {name!r} is not known; set auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(flag, False) for flag in _BF16_FLAGS)
