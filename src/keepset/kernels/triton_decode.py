"""The projections to neurons behind `keepset.kernels.triton_ffn`; docs/KERNELS.md explains them."""

from __future__ import annotations

from keepset.kernels.triton_device import activate, chosen, project

# isort: split
import triton
import triton.language as tl


@triton.jit
def rows_up(
    x, up, gate, up_bias, gate_bias, norms, keep, index, threshold, value, arrivals,
    n_rows, D, n, n_arrivals, x_row, up_row, gate_row, value_row,
    MODE: tl.constexpr, ACT: tl.constexpr, CHOICE: tl.constexpr, INDEXED: tl.constexpr,
    NORMS: tl.constexpr, UP_BIAS: tl.constexpr, GATE_BIAS: tl.constexpr, TILE: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, ARRIVALS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Project a tile of neurons, or of the n neurons that `index` lists, and write their values.

    MODE "plain": act(up). "gated": act(gate) up. "gate": act(gate). "times": what is there is
    act(gate), and is multiplied by up where it is chosen; the rest becomes zero, and is not read.
    """
    tile = tl.program_id(0)
    if tile == 0:
        # Cleared here, a launch ahead of their use, so that no launch of its own is needed.
        a = tl.arange(0, ARRIVALS)
        tl.store(arrivals + a, tl.zeros((ARRIVALS,), dtype=tl.int32), mask=a < n_arrivals)
    j = tile * TILE + tl.arange(0, TILE)
    live = j < n
    if INDEXED:
        j = tl.load(index + j, mask=live, other=0).to(tl.int64)
    b = tl.arange(0, BLOCK_B)
    pointers = value + b[None, :] * value_row + j[:, None]
    written = live[:, None] & (b < n_rows)[None, :]
    if MODE == "gated" or MODE == "gate":
        h = project(x, gate, j, live, n_rows, D, x_row, gate_row, TILE, BLOCK_B, BLOCK_D, STAGES)
        if GATE_BIAS:
            h += tl.load(gate_bias + j, mask=live, other=0.0).to(tl.float32)[:, None]
        h = activate(h, ACT)
    if MODE != "gate":
        if MODE == "times":
            h = tl.load(pointers, mask=written, other=0.0).to(tl.float32)
            kept = chosen(h, keep, norms, threshold, j, b, live, written, n, CHOICE, NORMS)
            live = tl.max(kept.to(tl.int32), axis=1) > 0
        u = project(x, up, j, live, n_rows, D, x_row, up_row, TILE, BLOCK_B, BLOCK_D, STAGES)
        if UP_BIAS:
            u += tl.load(up_bias + j, mask=live, other=0.0).to(tl.float32)[:, None]
        if MODE == "plain":
            h = activate(u, ACT)
        elif MODE == "gated":
            h *= u
        else:
            h = tl.where(kept, h * u, 0.0)
    tl.store(pointers, h.to(value.dtype.element_ty), mask=written)
