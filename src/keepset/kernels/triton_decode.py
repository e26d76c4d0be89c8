"""The kernels behind `keepset.kernels.triton_ffn`; docs/KERNELS.md explains them."""

from __future__ import annotations

from keepset.kernels.triton_device import activate, compact, find_slot, project, tile_ends
from keepset.kernels.triton_topk import select

# isort: split
import triton
import triton.language as tl


@triton.jit
def up_compact(
    x, up, gate, up_bias, gate_bias, norms, threshold, value, index, count, arrivals,
    n_rows, D, F, n_arrivals, x_row, up_row, gate_row, value_row,
    ACT: tl.constexpr, CHOOSE: tl.constexpr, GATED: tl.constexpr, UP_BIAS: tl.constexpr,
    GATE_BIAS: tl.constexpr, NORMS: tl.constexpr, TILE: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr, ARRIVALS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Project all neurons of a tile, score them, and compact the kept ones.

    GATED and CHOOSE: without a gate h = act(up); with one, h = act(gate) up where "hidden" is
    scored, or act(gate) alone where "gate" is.
    """
    tile = tl.program_id(0)
    j = tile * TILE + tl.arange(0, TILE)
    live = j < F
    if tile == 0:
        # Cleared here, a launch ahead of their use, so that no launch of its own is needed.
        a = tl.arange(0, ARRIVALS)
        tl.store(arrivals + a, tl.zeros((ARRIVALS,), dtype=tl.int32), mask=a < n_arrivals)
    if GATED:
        h = project(x, gate, j, live, n_rows, D, x_row, gate_row, TILE, BLOCK_B, BLOCK_D, STAGES)
        if GATE_BIAS:
            h += tl.load(gate_bias + j, mask=live, other=0.0).to(tl.float32)[:, None]
        h = activate(h, ACT)
    if (not GATED) or CHOOSE == "hidden":
        u = project(x, up, j, live, n_rows, D, x_row, up_row, TILE, BLOCK_B, BLOCK_D, STAGES)
        if UP_BIAS:
            u += tl.load(up_bias + j, mask=live, other=0.0).to(tl.float32)[:, None]
        if GATED:
            h *= u
        else:
            h = activate(u, ACT)
    # The rule sees what a dense layer would have handed on: h in its stored precision.
    h = h.to(value.dtype.element_ty).to(tl.float32)
    score = tl.abs(h)
    if NORMS:
        score *= tl.load(norms + j, mask=live, other=0.0).to(tl.float32)[:, None]
    b = tl.arange(0, BLOCK_B)
    # Not "score > threshold": a NaN must reach the output, not vanish.
    keep = (score <= threshold) == 0
    keep = keep & live[:, None] & (b < n_rows)[None, :]
    compact(h, keep, j, tile, value, index, count, n_rows, value_row, TILE, BLOCK_B)


@triton.jit
def row_keep(
    value, norms, keep, n, k, value_row,
    NORMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mark the k best of one row of a list that holds every neuron at its own slot."""
    b = tl.program_id(0)
    j = tl.arange(0, BLOCK)
    live = j < n
    score = tl.abs(tl.load(value + b * value_row + j, mask=live, other=0.0).to(tl.float32))
    if NORMS:
        score *= tl.load(norms + j, mask=live, other=0.0).to(tl.float32)
    chosen = select(score, live, k)
    tl.store(keep + b * n + j, chosen.to(tl.int8), mask=live)


@triton.jit
def compact_kept(
    dense, keep, value, index, count, n_rows, F, dense_row, value_row,
    TILE: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Compact a tile of such a list by the marks of all rows."""
    tile = tl.program_id(0)
    j = tile * TILE + tl.arange(0, TILE)
    b = tl.arange(0, BLOCK_B)
    live = (j < F)[:, None] & (b < n_rows)[None, :]
    h = tl.load(dense + b[None, :] * dense_row + j[:, None], mask=live, other=0.0)
    chosen = tl.load(keep + b[None, :] * F + j[:, None], mask=live, other=0) != 0
    compact(h, chosen, j, tile, value, index, count, n_rows, value_row, TILE, BLOCK_B)


@triton.jit
def rows_up(
    x, up, gate, up_bias, gate_bias, value, index, count, arrivals,
    n_rows, D, n_tiles, n_kept, n_arrivals, x_row, up_row, gate_row, value_row,
    ACT: tl.constexpr, MODE: tl.constexpr, UP_BIAS: tl.constexpr, GATE_BIAS: tl.constexpr,
    TILE: tl.constexpr, TILES: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, ARRIVALS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Project kept neurons only, and write their h.

    MODE "multiply": the list is tiled and value holds act(gate), which up is multiplied into.
    MODE "gated" and "plain": the list is n_kept slots in a row, and value is only written.
    """
    program = tl.program_id(0)
    if MODE == "multiply":
        ends = tile_ends(count, n_tiles, TILES)
        total = tl.max(ends, axis=0)
    else:
        total = n_kept
        if program == 0:
            a = tl.arange(0, ARRIVALS)
            tl.store(arrivals + a, tl.zeros((ARRIVALS,), dtype=tl.int32), mask=a < n_arrivals)
    b = tl.arange(0, BLOCK_B)
    for start in range(program * BLOCK_K, total, PROGRAMS * BLOCK_K):
        position = start + tl.arange(0, BLOCK_K)
        live = position < total
        slot = position
        if MODE == "multiply":
            slot = find_slot(position, ends, TILE)
        j = tl.load(index + slot, mask=live, other=0)
        pointers = value + b[None, :] * value_row + slot[:, None]
        written = live[:, None] & (b < n_rows)[None, :]
        u = project(x, up, j, live, n_rows, D, x_row, up_row, BLOCK_K, BLOCK_B, BLOCK_D, STAGES)
        if UP_BIAS:
            u += tl.load(up_bias + j, mask=live, other=0.0).to(tl.float32)[:, None]
        if MODE == "multiply":
            h = u * tl.load(pointers, mask=written, other=0.0).to(tl.float32)
        elif MODE == "gated":
            g = project(
                x, gate, j, live, n_rows, D, x_row, gate_row, BLOCK_K, BLOCK_B, BLOCK_D, STAGES
            )
            if GATE_BIAS:
                g += tl.load(gate_bias + j, mask=live, other=0.0).to(tl.float32)[:, None]
            h = activate(g, ACT) * u
        else:
            h = activate(u, ACT)
        tl.store(pointers, h.to(value.dtype.element_ty), mask=written)


@triton.jit
def rows_down(
    value, index, count, down_t, down_bias, partial, arrivals, out,
    n_rows, D, n_tiles, n_kept, down_row, value_row,
    BIAS: tl.constexpr, TILED: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    SHARES: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add up the kept rows of down_t for one block of outputs and one share of the list."""
    block = tl.program_id(0)
    share = tl.program_id(1)
    c = block * BLOCK_D + tl.arange(0, BLOCK_D)
    b = tl.arange(0, BLOCK_B)
    inside = c < D
    if TILED:
        ends = tile_ends(count, n_tiles, TILES)
        total = tl.max(ends, axis=0)
    else:
        total = n_kept
    size = tl.cdiv(tl.cdiv(total, SHARES), BLOCK_K) * BLOCK_K
    stop = tl.minimum(share * size + size, total)
    if BLOCK_B == 1:
        acc = tl.zeros((BLOCK_K, BLOCK_D), dtype=tl.float32)
    else:
        acc = tl.zeros((BLOCK_B, BLOCK_D), dtype=tl.float32)
    for start in range(share * size, stop, BLOCK_K):
        position = start + tl.arange(0, BLOCK_K)
        live = position < stop
        slot = position
        if TILED:
            slot = find_slot(position, ends, TILE)
        j = tl.load(index + slot, mask=live, other=0).to(tl.int64)
        w = tl.load(
            down_t + j[:, None] * down_row + c[None, :],
            mask=live[:, None] & inside[None, :],
            other=0.0,
        )
        if BLOCK_B == 1:
            h = tl.load(value + slot, mask=live, other=0.0)
            acc += h.to(tl.float32)[:, None] * w.to(tl.float32)
        else:
            h = tl.load(
                value + b[:, None] * value_row + slot[None, :],
                mask=(b < n_rows)[:, None] & live[None, :],
                other=0.0,
            )
            acc = tl.dot(h, w, acc, input_precision="ieee")
    y = acc
    if BLOCK_B == 1:
        y = tl.sum(acc, axis=0)[None, :]

    offsets = b[:, None] * D + c[None, :]
    written = (b < n_rows)[:, None] & inside[None, :]
    last = True
    if SHARES > 1:
        tl.store(partial + share * n_rows * D + offsets, y, mask=written)
        # Every thread's sums must be in memory before the ticket says so.
        tl.debug_barrier()
        last = tl.atomic_add(arrivals + block, 1, sem="acq_rel", scope="gpu") == SHARES - 1
    if last:
        if SHARES > 1:
            y = tl.zeros((BLOCK_B, BLOCK_D), dtype=tl.float32)
            for s in range(SHARES):
                # .cg: from the L2 cache, where the other programs' sums are.
                sums = partial + s * n_rows * D + offsets
                y += tl.load(sums, mask=written, other=0.0, cache_modifier=".cg")
        if BIAS:
            y += tl.load(down_bias + c, mask=inside, other=0.0).to(tl.float32)[None, :]
        tl.store(out + offsets, y.to(out.dtype.element_ty), mask=written)
