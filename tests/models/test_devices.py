"""Devices and number formats: chosen by what is there, refused by name."""

from __future__ import annotations

import pytest
import torch
from prepared import CPU

from keepset import models
from keepset.errors import ModelError


def test_auto_device_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("keepset.models.devices.claim", lambda count: count - 2)
    for available, device in ((False, "cpu"), (True, "cuda:0")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert models.resolve_device("auto") == torch.device(device)
    assert models.resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ModelError, match="cuda:2 was asked for, but there are 2 GPUs; set cuda:0"):
        models.resolve_device("cuda:2")


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"device: cuda was asked for.*set device: cpu"):
        models.resolve_device("cuda")
    with pytest.raises(ModelError, match="'tpu' is not known; set auto"):
        models.resolve_device("tpu")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_dtype_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert models.resolve_dtype("auto", CPU) == dtype


def test_dtype_by_name() -> None:
    assert models.resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert models.resolve_dtype("float16", CPU) == torch.float16
    with pytest.raises(ModelError, match="'int4' is not known; set auto, float32"):
        models.resolve_dtype("int4", CPU)
