"""Exact top-k per window of tokens, ties to the lowest index.

    window_topk(h, k, window=W, norms=None)      (tokens, n) -> (windows, k) int32 indices
    top_marks(h, k, norms=None)                  (tokens, n) -> (tokens, n) int8, 1 where kept

One program ranks one window, without sorting. A score's bits are in the order of the scores: those
of the k-th largest are found one by one, each by a count of the scores that are not smaller, and a
running count gives the first of its ties a place. The kept indices come out ascending, so that the
gathers that use them walk through the weights in order.
"""

from __future__ import annotations

from torch import Tensor

from keepset.kernels.launch import (
    DTYPES,
    cdiv,
    check,
    check_vector,
    launch,
    power_of_two,
    workspace,
)
from keepset.kernels.triton_device import order_key

# isort: split
import torch
import triton
import triton.language as tl

MAX_UNITS = 65_536
"""A window's scores stay in the registers of one program."""

_ZEROS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}


@triton.jit
def select(score, live, k, LOW: tl.constexpr):
    """Mark the k largest live scores; ties to the lowest index.

    Args:
        score: (n,) float32; live: (n,) bool, at least k of them True.
        LOW: How many of the last bits are zero in every score.

    Returns:
        keep (n,) bool.
    """
    key = order_key(score) >> LOW
    # The k-th largest key, bit by bit from the sign down: the largest cut that k keys reach.
    reached = tl.sum((live & (key >= 0)).to(tl.int32), axis=0)
    cut = tl.where(reached >= k, 0, -(1 << (31 - LOW))).to(tl.int32)
    for bit in tl.static_range(30 - LOW, -1, -1):
        higher = cut + (1 << bit)
        reached = tl.sum((live & (key >= higher)).to(tl.int32), axis=0)
        cut = tl.where(reached >= k, higher, cut)
    above = live & (key > cut)
    tied = live & (key == cut)
    wanted = k - tl.sum(above.to(tl.int32), axis=0)
    return above | (tied & (tl.cumsum(tied.to(tl.int32), axis=0) <= wanted))


@triton.jit
def _window_top(
    h, norms, out, tokens, n, k, window, h_row,
    NORMS: tl.constexpr, MARKS: tl.constexpr, LOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    w = tl.program_id(0)
    j = tl.arange(0, BLOCK)
    live = j < n
    score = tl.zeros((BLOCK,), dtype=tl.float32)
    first = w * window
    row = h + first.to(tl.int64) * h_row
    for _ in range(first, tl.minimum(first + window, tokens)):
        score += tl.abs(tl.load(row + j, mask=live, other=0.0).to(tl.float32))
        row += h_row
    if NORMS:
        score *= tl.load(norms + j, mask=live, other=0.0).to(tl.float32)
    keep = select(score, live, k, LOW)
    if MARKS:
        tl.store(out + w.to(tl.int64) * n + j, keep.to(tl.int8), mask=live)
    else:
        place = tl.cumsum(keep.to(tl.int32), axis=0) - 1
        tl.store(out + w.to(tl.int64) * k + place, j, mask=keep)


def window_topk(h: Tensor, k: int, *, window: int = 1, norms: Tensor | None = None) -> Tensor:
    """Choose the k units with the largest summed score in every window of tokens.

    Args:
        h: (tokens, n) activations; a unit's score at a token is |h|, or |h| norms.
        k: 0 <= k <= n.
        window: Tokens per window; the last window may be shorter.
        norms: (n,) ||w_j||_2, for the score `impact`.

    Returns:
        (ceil(tokens / window), k) int32, ascending within each window.

    Raises:
        KernelError: h does not fit, or k or the window is out of range.
    """
    h = _checked(h, k, norms)
    check(window >= 1, f"window must be a positive number of tokens, got {window}")
    index = workspace((cdiv(h.shape[0], window), k), torch.int32, h)
    if index.numel():
        _rank(h, k, window, norms, index)
    return index


def top_marks(h: Tensor, k: int, *, norms: Tensor | None = None) -> Tensor:
    """Mark the k units with the largest score at every token.

    Args:
        h: (tokens, n) activations; a unit's score is |h|, or |h| norms.
        k: 0 <= k <= n.
        norms: (n,) ||w_j||_2, for the score `impact`.

    Returns:
        (tokens, n) int8, 1 where a unit is kept; ties go to the lowest index.

    Raises:
        KernelError: h does not fit, or k is out of range.
    """
    h = _checked(h, k, norms)
    marks = workspace(tuple(h.shape), torch.int8, h)
    if marks.numel():
        _rank(h, k, 1, norms, marks)
    return marks


def _checked(h: Tensor, k: int, norms: Tensor | None) -> Tensor:
    check(h.ndim == 2 and h.dtype in DTYPES, f"h must be (tokens, n) floats, got {tuple(h.shape)}")
    n = h.shape[1]
    check(0 <= k <= n, f"cannot keep {k} of {n} units")
    check(n <= MAX_UNITS, f"{n} units: at most {MAX_UNITS} can be ranked by one program")
    check_vector("norms", norms, n, h)
    return h if h.stride(-1) == 1 else h.contiguous()


def _rank(h: Tensor, k: int, window: int, norms: Tensor | None, out: Tensor) -> None:
    """Fill `out`, one row per window: int32 indices, or int8 marks."""
    tokens, n = h.shape
    block = power_of_two(n)
    # A half-precision number as a float32 ends in zeros; sums and products may not.
    low = 0 if window > 1 or norms is not None else _ZEROS[h.dtype]
    launch(
        _window_top, (out.shape[0],), h, norms, out, tokens, n, k, window, h.stride(0),
        NORMS=norms is not None, MARKS=out.dtype == torch.int8, LOW=low, BLOCK=block,
        num_warps=min(max(block // 512, 4), 16),
    )  # fmt: skip
