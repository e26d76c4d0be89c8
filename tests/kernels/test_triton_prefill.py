"""Many tokens: one shared set, or a compact list for each, against the plain reference."""

from __future__ import annotations

import pytest
import torch
from checks import (
    DEVICE,
    DTYPES,
    assert_close,
    check_compacted,
    check_shared_gemm,
    kernels,
    layer,
    tokens,
)

from keepset.errors import KernelError
from keepset.kernels import naive
from keepset.kernels.triton_prefill import GemmConfig, compacted_prefill, shared_set_ffn
from keepset.kernels.weights import FfnWeights

K = kernels()
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


@dtypes
@pytest.mark.parametrize(("gated", "act"), [(False, "relu"), (True, "silu")])
def test_shared_set(draw, gated, act, dtype) -> None:
    check_shared_gemm(K, draw, gated=gated, act=act, dtype=dtype)


@pytest.mark.parametrize(
    ("rows", "n", "d", "kept"), [(17, 33, 31, 33), (1, 1, 1, 1), (33, 9, 65, 0)]
)
def test_shared_set_of_odd_sizes(draw, rows, n, d, kept) -> None:
    check_shared_gemm(K, draw, kept, rows=rows, n=n, d=d)


@pytest.mark.parametrize("rows", [2, 20])
def test_shared_set_with_blocks_that_are_chosen_by_the_shape(draw, rows) -> None:
    ffn, x = layer(draw, 50, 40, gated=True, act="gelu"), tokens(draw, rows, 40)
    keep = torch.arange(3, 30, 2, device=DEVICE)
    y = shared_set_ffn(x.view(2, -1, 40), ffn, keep)
    assert_close(y.view(-1, 40), naive.shared_set_ffn(x, ffn, keep), torch.float32)


@dtypes
@pytest.mark.parametrize("gated", [False, True])
def test_compacted(draw, gated, dtype) -> None:
    check_compacted(K, draw, gated=gated, dtype=dtype)


@pytest.mark.parametrize("capacity", [1, 4, 64])
@pytest.mark.parametrize("gated", [False, True])
def test_a_full_tile_drops_nothing(draw, gated, capacity) -> None:
    # About half of 64 neurons a tile: more than 1 and 4 slots hold, fewer than 64.
    check_compacted(K, draw, capacity, gated=gated, natural=True, rows=2)


@pytest.mark.parametrize(("rows", "n", "d"), [(1, 1, 1), (17, 65, 31)])
def test_compacted_odd_sizes(draw, rows, n, d) -> None:
    check_compacted(K, draw, rows=rows, n=n, d=d, natural=True)


def test_compacted_empty_and_full(draw) -> None:
    ffn, x = layer(draw, 70, 40), tokens(draw, 2, 40)
    config = GemmConfig(tokens=16, units=64, outputs=64)
    nothing = ffn.down_bias.expand(2, 40)
    assert compacted_prefill(x, ffn, threshold=float("inf"), config=config).equal(nothing)
    y = compacted_prefill(x, ffn, threshold=-1.0, capacity=64, config=config)
    assert_close(y, naive.down(naive.hidden(x, ffn), ffn), torch.float32)
    assert compacted_prefill(x[:0], ffn).shape == (0, 40)


@pytest.mark.parametrize("capacity", [1, 64])
def test_nan_is_seen(draw, capacity) -> None:
    ffn, x = layer(draw, 70, 40), tokens(draw, 2, 40)
    x[1, 3] = float("nan")
    config = GemmConfig(tokens=16, units=64, outputs=64)
    y = compacted_prefill(x, ffn, threshold=1.0, capacity=capacity, config=config)
    assert y[1].isnan().all()
    assert not y[0].isnan().any()


def test_refusals(draw) -> None:
    ffn, x = layer(draw, 70, 40), tokens(draw, 20, 40)
    with pytest.raises(KernelError, match="capacity"):
        compacted_prefill(x, ffn, capacity=0)
    with pytest.raises(KernelError, match="turn a mask"):
        shared_set_ffn(x, ffn, torch.ones(70, dtype=torch.bool, device=DEVICE))
    with pytest.raises(KernelError, match="convert one"):
        compacted_prefill(x, FfnWeights(ffn.up, ffn.down_t.half()))
