"""Kernels run on the GPU where there is one, else in Triton's interpreter (`interpreter`)."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def draw() -> torch.Generator:
    """Numbers that differ in every run. The seed of a failure is in its output: set it as
    KEEPSET_TEST_SEED to see the failure again."""
    seed = int(os.environ.get("KEEPSET_TEST_SEED") or secrets.randbits(31))
    print(f"KEEPSET_TEST_SEED={seed}")
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Memory that nobody wrote holds NaN, or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
