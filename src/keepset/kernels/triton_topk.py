"""Exact top-k per window of tokens, ties to the lowest index.

    window_topk(h, k, window=W, norms=None)      (tokens, n) -> (windows, k) int32 indices
    top_marks(h, k, norms=None)                  (tokens, n) -> (tokens, n) int8, 1 where kept

One program ranks one window, without sorting: four passes over the bits of the scores find the
k-th largest (a radix select), and a running count gives the first of its ties a place. The kept
indices come out ascending, so that the gathers that use them walk through the weights in order.
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


@triton.jit
def select(score, live, k):
    """Mark the k largest live scores; ties to the lowest index.

    Args:
        score: (n,) float32; live: (n,) bool, at least k of them True.

    Returns:
        keep (n,) bool.
    """
    key = order_key(score).to(tl.uint32, bitcast=True) ^ 0x80000000
    bins = tl.arange(0, 256)
    tied = live
    wanted = k
    cut = tl.zeros((), dtype=tl.uint32)
    for byte in tl.static_range(3, -1, -1):
        digit = ((key >> (8 * byte)) & 255).to(tl.int32)
        held = tl.histogram(digit, 256, mask=tied)
        at_least = tl.sum(held, axis=0) - tl.cumsum(held, axis=0) + held
        chosen = tl.sum((at_least >= wanted).to(tl.int32), axis=0) - 1
        wanted -= tl.sum(tl.where(bins == chosen, at_least - held, 0), axis=0)
        tied = tied & (digit == chosen)
        cut = (cut << 8) | chosen.to(tl.uint32)
    first = tl.cumsum(tied.to(tl.int32), axis=0) <= wanted
    return (live & (key > cut)) | (tied & first)


@triton.jit
def _window_top(
    h, norms, out, tokens, n, k, window, h_row,
    NORMS: tl.constexpr, MARKS: tl.constexpr, BLOCK: tl.constexpr,
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
    keep = select(score, live, k)
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
    launch(
        _window_top, (out.shape[0],), h, norms, out, tokens, n, k, window, h.stride(0),
        NORMS=norms is not None, MARKS=out.dtype == torch.int8, BLOCK=block,
        num_warps=min(max(block // 512, 4), 16),
    )  # fmt: skip
