"""The feed-forward layer for many tokens at once, kept neurons only.

    shared_set_ffn(x, ffn, keep)                    one keep set for all tokens of a window
    compacted_prefill(x, ffn, threshold=0.0)        a set of its own for every token, few of them

`shared_set_ffn` is two matrix products whose weights are gathered by row while they are read; up
to 16 tokens it hands over to `keepset.kernels.triton_ffn.shared_set_decode`.

`compacted_prefill` serves models whose activations are almost all zero (99% and more), in the
manner of the TwELL layout (arXiv:2603.23198): `_pack` is dense and packs each token's kept neurons
tile by tile; `_unpack` reads only their rows of up and down_t, and computes again a tile that holds
more than `capacity` of them (docs/KERNELS.md, "Compacted prefill").
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from keepset.kernels.launch import (
    cdiv,
    check,
    check_ffn,
    launch,
    power_of_two,
    rows_of,
    workspace,
)
from keepset.kernels.triton_device import activate, find_slot
from keepset.kernels.triton_ffn import shared_set_decode
from keepset.kernels.triton_gemv import check_keep
from keepset.kernels.weights import MAX_ROWS, FfnWeights

# isort: split
import torch
import triton
import triton.language as tl

MAX_WIDTH = 16_384
"""A token of `compacted_prefill` stays in the registers of one program."""


@dataclass(frozen=True)
class GemmConfig:
    """Block sizes of a matrix product: powers of two, at least 16.

    Args:
        tokens: Tokens per program.
        units: Neurons per program of the up projection, or per step of the down projection.
        outputs: Outputs per program of the down projection.
        inputs: Inputs per step of the up projection.
        group: Blocks of tokens that run side by side, to share weights in the L2 cache.
        warps: Of every kernel.
        stages: Loads in flight.
    """

    tokens: int
    units: int
    outputs: int
    inputs: int = 64
    group: int = 8
    warps: int = 8
    stages: int = 3


def gemm_config(tokens: int, gated: bool) -> GemmConfig:
    """Block sizes for a number of tokens. Estimates: not tuned on a device."""
    if tokens <= 64:
        return GemmConfig(tokens=64, units=64, outputs=64, warps=4)
    # Two accumulators share the registers where the layer has a gate.
    return GemmConfig(tokens=128, units=64 if gated else 128, outputs=128)


@triton.jit
def _block(n_m, n_n, GROUP: tl.constexpr):
    """The block of this program: groups of GROUP row blocks, column by column."""
    program = tl.program_id(0)
    width = GROUP * n_n
    first = (program // width) * GROUP
    size = tl.minimum(n_m - first, GROUP)
    return first + (program % width) % size, (program % width) // size


@triton.jit
def _gemm(
    x, m, weight, j, live, n_tokens, D, x_row, w_row,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """x[m] @ weight[j]^T -> (BLOCK_M, BLOCK_N) float32."""
    c = tl.arange(0, BLOCK_D)
    x_pointers = x + m.to(tl.int64)[:, None] * x_row + c[None, :]
    w_pointers = weight + j.to(tl.int64)[None, :] * w_row + c[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        inside = c < D - start
        a = tl.load(x_pointers, mask=(m < n_tokens)[:, None] & inside[None, :], other=0.0)
        b = tl.load(w_pointers, mask=live[None, :] & inside[:, None], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
        x_pointers += BLOCK_D
        w_pointers += BLOCK_D
    return acc


@triton.jit
def _shared_up(
    x, up, gate, up_bias, gate_bias, keep, value,
    n_tokens, D, K, x_row, up_row, gate_row,
    ACT: tl.constexpr, GATED: tl.constexpr, UP_BIAS: tl.constexpr, GATE_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row, column = _block(tl.cdiv(n_tokens, BLOCK_M), tl.cdiv(K, BLOCK_K), GROUP)
    m = row * BLOCK_M + tl.arange(0, BLOCK_M)
    p = column * BLOCK_K + tl.arange(0, BLOCK_K)
    live = p < K
    j = tl.load(keep + p, mask=live, other=0)
    h = _gemm(x, m, up, j, live, n_tokens, D, x_row, up_row, BLOCK_M, BLOCK_K, BLOCK_D)
    if UP_BIAS:
        h += tl.load(up_bias + j, mask=live, other=0.0).to(tl.float32)[None, :]
    if GATED:
        g = _gemm(x, m, gate, j, live, n_tokens, D, x_row, gate_row, BLOCK_M, BLOCK_K, BLOCK_D)
        if GATE_BIAS:
            g += tl.load(gate_bias + j, mask=live, other=0.0).to(tl.float32)[None, :]
        h *= activate(g, ACT)
    else:
        h = activate(h, ACT)
    pointers = value + m.to(tl.int64)[:, None] * K + p[None, :]
    tl.store(pointers, h.to(value.dtype.element_ty), mask=(m < n_tokens)[:, None] & live[None, :])


@triton.jit
def _shared_down(
    value, down_t, down_bias, keep, out,
    n_tokens, D, K, down_row,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row, column = _block(tl.cdiv(n_tokens, BLOCK_M), tl.cdiv(D, BLOCK_D), GROUP)
    m = row * BLOCK_M + tl.arange(0, BLOCK_M)
    c = column * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (c < D)[None, :]
    token = (m < n_tokens)[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for start in range(0, K, BLOCK_K):
        p = start + tl.arange(0, BLOCK_K)
        live = p < K
        j = tl.load(keep + p, mask=live, other=0).to(tl.int64)
        h = tl.load(
            value + m.to(tl.int64)[:, None] * K + p[None, :], mask=token & live[None, :], other=0.0
        )
        w = tl.load(
            down_t + j[:, None] * down_row + c[None, :], mask=live[:, None] & inside, other=0.0
        )
        acc = tl.dot(h, w, acc, input_precision="ieee")
    if BIAS:
        acc += tl.load(down_bias + c, mask=c < D, other=0.0).to(tl.float32)[None, :]
    pointers = out + m.to(tl.int64)[:, None] * D + c[None, :]
    tl.store(pointers, acc.to(out.dtype.element_ty), mask=token & inside)


@triton.jit
def _pack(
    x, weight, bias, threshold, value, index, count,
    n_tokens, D, F, n_tiles, x_row, w_row,
    ACT: tl.constexpr, BIAS: tl.constexpr, CAPACITY: tl.constexpr,
    BLOCK_M: tl.constexpr, TILE: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row, tile = _block(tl.cdiv(n_tokens, BLOCK_M), n_tiles, GROUP)
    m = row * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tile * TILE + tl.arange(0, TILE)
    live = j < F
    h = _gemm(x, m, weight, j, live, n_tokens, D, x_row, w_row, BLOCK_M, TILE, BLOCK_D)
    if BIAS:
        h += tl.load(bias + j, mask=live, other=0.0).to(tl.float32)[None, :]
    h = activate(h, ACT).to(value.dtype.element_ty)
    # Not "above threshold": a NaN must reach the output, not vanish.
    keep = (tl.abs(h.to(tl.float32)) <= threshold) == 0
    kept = (keep & live[None, :]).to(tl.int32)
    place = tl.cumsum(kept, axis=1) - kept
    token = m < n_tokens
    # Within a block offsets are 32 bit: half the registers of addresses.
    first = row.to(tl.int64) * BLOCK_M * n_tiles + tile
    within = tl.arange(0, BLOCK_M) * n_tiles
    tl.store(count + first + within, tl.sum(kept, axis=1), mask=token)
    offsets = within[:, None] * CAPACITY + place
    written = token[:, None] & (kept > 0) & (place < CAPACITY)
    tl.store(value + first * CAPACITY + offsets, h, mask=written)
    j = tl.broadcast_to(j[None, :], (BLOCK_M, TILE))
    tl.store(index + first * CAPACITY + offsets, j, mask=written)


@triton.jit
def _rows_of(weight, j, live, c, D, row):
    """Rows j of a weight, (len(j), len(c)) float32; zero where not `live`."""
    pointers = weight + j.to(tl.int64)[:, None] * row + c[None, :]
    return tl.load(pointers, mask=live[:, None] & (c < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _unpack(
    x, gate, up, down_t, gate_bias, up_bias, down_bias, threshold, value, index, count, out,
    D, F, n_tiles, x_row, gate_row, up_row, down_row,
    ACT: tl.constexpr, GATED: tl.constexpr, GATE_BIAS: tl.constexpr, UP_BIAS: tl.constexpr,
    DOWN_BIAS: tl.constexpr, CAPACITY: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # `gate` is the first projection: the gate, or up where the layer has no gate.
    m = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_D)
    v = tl.load(x + m * x_row + c, mask=c < D, other=0.0).to(tl.float32)
    y = tl.zeros((BLOCK_D,), dtype=tl.float32)
    if DOWN_BIAS:
        y += tl.load(down_bias + c, mask=c < D, other=0.0).to(tl.float32)
    t = tl.arange(0, TILES)
    held = tl.load(count + m * n_tiles + t, mask=t < n_tiles, other=0)
    full = held > CAPACITY
    ends = tl.cumsum(tl.where(full, 0, held), axis=0)
    total = tl.max(ends, axis=0)
    for start in range(0, total, BLOCK_K):
        position = start + tl.arange(0, BLOCK_K)
        live = position < total
        slot = m * n_tiles * CAPACITY + find_slot(position, ends, CAPACITY)
        j = tl.load(index + slot, mask=live, other=0)
        h = tl.load(value + slot, mask=live, other=0.0).to(tl.float32)
        if GATED:
            u = tl.sum(_rows_of(up, j, live, c, D, up_row) * v[None, :], axis=1)
            if UP_BIAS:
                u += tl.load(up_bias + j, mask=live, other=0.0).to(tl.float32)
            h *= u
        y += tl.sum(_rows_of(down_t, j, live, c, D, down_row) * h[:, None], axis=0)
    if tl.max(full.to(tl.int32), axis=0) > 0:
        for tile in range(0, n_tiles):
            if tl.load(count + m * n_tiles + tile) > CAPACITY:
                for start in range(0, TILE, BLOCK_K):
                    j = tile * TILE + start + tl.arange(0, BLOCK_K)
                    live = j < F
                    h = tl.sum(_rows_of(gate, j, live, c, D, gate_row) * v[None, :], axis=1)
                    if GATE_BIAS:
                        h += tl.load(gate_bias + j, mask=live, other=0.0).to(tl.float32)
                    h = activate(h, ACT).to(value.dtype.element_ty).to(tl.float32)
                    live = live & ((tl.abs(h) <= threshold) == 0)
                    if GATED:
                        u = tl.sum(_rows_of(up, j, live, c, D, up_row) * v[None, :], axis=1)
                        if UP_BIAS:
                            u += tl.load(up_bias + j, mask=live, other=0.0).to(tl.float32)
                        h *= u
                    h = tl.where(live, h, 0.0)
                    y += tl.sum(_rows_of(down_t, j, live, c, D, down_row) * h[:, None], axis=0)
    tl.store(out + m * D + c, y.to(out.dtype.element_ty), mask=c < D)


def shared_set_ffn(
    x: Tensor,
    ffn: FfnWeights,
    keep: Tensor,
    *,
    config: GemmConfig | None = None,
) -> Tensor:
    """Run the FFN with one known keep set for any number of tokens.

    Args:
        x: (..., d); float32, float16 or bfloat16, the dtype of the weights.
        ffn: The layer's weights on the device of x.
        keep: (k,) int32 or int64 indices below n, each once.
        config: Block sizes instead of `gemm_config`'s; with it, few rows stay here as well.

    Returns:
        (..., d), the dtype of x.

    Raises:
        KernelError: tensors that do not fit.
    """
    rows = rows_of(x, ffn.d)
    tokens, n_kept = rows.shape[0], keep.shape[0]
    if tokens <= MAX_ROWS and config is None:
        return shared_set_decode(x, ffn, keep)
    check_keep(keep, ffn.n, x)
    check_ffn(rows, ffn)
    y = workspace(tuple(rows.shape), x.dtype, x)
    config = config or gemm_config(tokens, ffn.gate is not None)
    gate = ffn.up if ffn.gate is None else ffn.gate
    value = workspace((tokens, n_kept), x.dtype, x)
    row_blocks = cdiv(tokens, config.tokens)
    shape = {
        "BLOCK_M": config.tokens, "BLOCK_K": config.units, "GROUP": config.group,
        "num_warps": config.warps, "num_stages": config.stages,
    }  # fmt: skip
    if n_kept and tokens:
        launch(
            _shared_up, (row_blocks * cdiv(n_kept, config.units),),
            rows, ffn.up, gate, ffn.up_bias, ffn.gate_bias, keep, value,
            tokens, ffn.d, n_kept, rows.stride(0), ffn.up.stride(0), gate.stride(0),
            ACT=ffn.act, GATED=ffn.gate is not None, UP_BIAS=ffn.up_bias is not None,
            GATE_BIAS=ffn.gate_bias is not None, BLOCK_D=config.inputs, **shape,
        )  # fmt: skip
    if tokens:
        launch(
            _shared_down, (row_blocks * cdiv(ffn.d, config.outputs),),
            value, ffn.down_t, ffn.down_bias, keep, y,
            tokens, ffn.d, n_kept, ffn.down_t.stride(0),
            BIAS=ffn.down_bias is not None, BLOCK_D=config.outputs, **shape,
        )  # fmt: skip
    return y.view(x.shape)


def compacted_prefill(
    x: Tensor,
    ffn: FfnWeights,
    *,
    threshold: float = 0.0,
    capacity: int = 16,
    config: GemmConfig | None = None,
) -> Tensor:
    """Run the FFN with each token's own few neurons: those whose score exceeds the threshold.

    A neuron's score is |act(gate)| where the layer has a gate, else |h|. With ReLU and a threshold
    of 0 the result is the dense layer's.

    Args:
        x: (..., d), any number of rows.
        ffn: The layer's weights on the device of x, at most `MAX_WIDTH` wide.
        threshold: Keep scores above it.
        capacity: Slots per token and tile of neurons. Fuller tiles are computed again, so the
            result does not depend on it.
        config: Block sizes instead of `gemm_config`'s.

    Returns:
        (..., d), the dtype of x.

    Raises:
        KernelError: tensors that do not fit.
    """
    rows = rows_of(x, ffn.d)
    check_ffn(rows, ffn)
    check(ffn.d <= MAX_WIDTH, f"compacted_prefill takes widths up to {MAX_WIDTH}, not {ffn.d}")
    check(capacity >= 1, f"capacity must be at least 1, got {capacity}")
    tokens, d = rows.shape
    y = workspace((tokens, d), x.dtype, x)
    config = config or GemmConfig(tokens=128, units=128, outputs=128)
    tile = config.units
    tiles = cdiv(ffn.n, tile)
    value = workspace((tokens, tiles, capacity), x.dtype, x)
    index = workspace((tokens, tiles, capacity), torch.int32, x)
    count = workspace((tokens, tiles), torch.int32, x)
    first, bias = (ffn.up, ffn.up_bias) if ffn.gate is None else (ffn.gate, ffn.gate_bias)
    if not tokens:
        return y.view(x.shape)
    launch(
        _pack, (cdiv(tokens, config.tokens) * tiles,),
        rows, first, bias, float(threshold), value, index, count,
        tokens, d, ffn.n, tiles, rows.stride(0), first.stride(0),
        ACT=ffn.act, BIAS=bias is not None, CAPACITY=capacity, BLOCK_M=config.tokens, TILE=tile,
        BLOCK_D=config.inputs, GROUP=config.group,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    width = max(power_of_two(d), 16)
    launch(
        _unpack, (tokens,),
        rows, first, ffn.up, ffn.down_t, bias, ffn.up_bias, ffn.down_bias, float(threshold),
        value, index, count, y,
        d, ffn.n, tiles, rows.stride(0), first.stride(0), ffn.up.stride(0), ffn.down_t.stride(0),
        ACT=ffn.act, GATED=ffn.gate is not None, GATE_BIAS=bias is not None,
        UP_BIAS=ffn.up_bias is not None, DOWN_BIAS=ffn.down_bias is not None,
        CAPACITY=capacity, TILE=tile, TILES=power_of_two(tiles),
        BLOCK_K=min(max(MAX_WIDTH // width, 1), tile), BLOCK_D=width, num_warps=4, num_stages=2,
    )  # fmt: skip
    return y.view(x.shape)
