"""Device functions that several Triton kernels share. They run inside kernels only."""

from __future__ import annotations

import keepset.kernels.launch  # noqa: F401  (says what to install where Triton is missing)

# isort: split
import triton
import triton.language as tl


@triton.jit
def activate(x, ACT: tl.constexpr):
    """The activation, in float32. NaN stays NaN."""
    if ACT == "relu":
        y = tl.where(x < 0, 0.0, x)
    elif ACT == "relu2":
        r = tl.where(x < 0, 0.0, x)
        y = r * r
    elif ACT == "silu":
        y = x / (1.0 + tl.exp(-x))
    elif ACT == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        tl.static_assert(ACT == "gelu_tanh")
        # 0.5 (1 + tanh(u)) is the logistic function of 2u; the interpreter has no tanh.
        u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        y = x / (1.0 + tl.exp(-2.0 * u))
    return y


@triton.jit
def project(
    x, weight, row, live, n_rows, D, x_row, w_row,
    ROWS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """weight[row] @ x^T -> (ROWS, BLOCK_B) float32; zero where `live` is False.

    With one row of x each weight is used once: products on CUDA cores, summed at the end. With
    more rows tensor cores keep the arithmetic from becoming the limit.
    """
    base = weight + row.to(tl.int64)[:, None] * w_row
    if BLOCK_B == 1:
        partial = tl.zeros((ROWS, BLOCK_D), dtype=tl.float32)
        for start in tl.range(0, D, BLOCK_D, num_stages=STAGES):
            c = start + tl.arange(0, BLOCK_D)
            w = tl.load(base + c[None, :], mask=live[:, None] & (c < D)[None, :], other=0.0)
            v = tl.load(x + c, mask=c < D, other=0.0)
            partial += w.to(tl.float32) * v.to(tl.float32)[None, :]
        acc = tl.sum(partial, axis=1)[:, None]
    else:
        b = tl.arange(0, BLOCK_B)
        acc = tl.zeros((ROWS, BLOCK_B), dtype=tl.float32)
        for start in tl.range(0, D, BLOCK_D, num_stages=STAGES):
            c = start + tl.arange(0, BLOCK_D)
            w = tl.load(base + c[None, :], mask=live[:, None] & (c < D)[None, :], other=0.0)
            v = tl.load(
                x + b[None, :] * x_row + c[:, None],
                mask=(b < n_rows)[None, :] & (c < D)[:, None],
                other=0.0,
            )
            acc = tl.dot(w, v, acc, input_precision="ieee")
    return acc


@triton.jit
def chosen(
    value, keep, norms, threshold, j, b, inside, live, keep_row,
    CHOICE: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    """Which units j (units,) each token b (tokens,) keeps: (units, tokens) bool.

    CHOICE "marks": those that `keep` marks. "threshold": where |value|, times the unit's norm if
    there are norms, is at least the threshold; `value` is (units, tokens). `inside` (units,) and
    `live` (units, tokens) say what there is.
    """
    if CHOICE == "marks":
        kept = tl.load(keep + b[None, :] * keep_row + j[:, None], mask=live, other=0) != 0
    else:
        tl.static_assert(CHOICE == "threshold")
        score = tl.abs(value.to(tl.float32))
        if NORMS:
            score *= tl.load(norms + j, mask=inside, other=0.0).to(tl.float32)[:, None]
        # Not "score >= threshold": a NaN must reach the output, not vanish.
        kept = live & ((score < threshold) == 0)
    return kept


@triton.jit
def find_slot(position, ends, TILE: tl.constexpr):
    """The slot of the kept neuron at `position` of the list: (n,) -> (n,)."""
    before = ends[None, :] <= position[:, None]
    tile = tl.sum(before.to(tl.int32), axis=1)
    start = tl.max(tl.where(before, ends[None, :], 0), axis=1)
    return tile * TILE + position - start


@triton.jit
def order_key(score):
    """A score's bits as an int32 that sorts like the score; -0 equals 0, NaN is the largest."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(score != score, 0x7FFFFFFF, key)
