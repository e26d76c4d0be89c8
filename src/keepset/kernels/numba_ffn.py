"""Rules on units on a CPU: choice and mask of passages in one go, choice and down of a token.

The plain reference of passages is `keepset.rules.masks` and a product with its masks: it reads and
writes every activation some ten times, here it is twice. That of decoded tokens is `top_units` and
`keepset.kernels.torch_ffn`: at one token each of their operations costs as much as its work. Units
are ranked by the bits of their scores: those of floats that are not negative are in the order of
the floats.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from keepset.errors import ModelError
from keepset.kernels.numba_jit import compiled, fetch, vectorised
from keepset.rules.masks import NOT_A_NUMBER

DTYPES = (torch.float32, torch.bfloat16)
"""What the kernels of this module take."""

_BITS = {torch.float32: torch.uint32, torch.bfloat16: torch.uint16}
_NONE = np.empty(0, np.float32)
_INFINITY = np.uint32(0x7F800000)
_NO_SIGN = np.uint32(0x7FFFFFFF)
_HALF = np.uint32(16)
_ONE = np.uint32(1)
_TOP_BIT = np.uint32(1 << 30)
# Ties are counted in blocks, which the compiler turns into vector instructions.
_BLOCK = 64
_ROWS = 8
# Bytes that are fetched from memory together, and how many such pieces of a row in advance.
_LINE, _FETCHED = 64, 12


def keep_by_token(h: Tensor, kept: int, norms: Tensor | None, opening: tuple[int, int]) -> Tensor:
    """Zero all but the `kept` largest |h_j|, or |h_j| ||w_j||, of each token.

    Args:
        h: (batch, tokens, n), of `DTYPES`.
        kept: 1 <= kept <= n; ties go to the lowest index.
        norms: ||w_j|| (n,) float32, or None.
        opening: How many tokens of each row come before the text, and how many run dense.

    Returns:
        A new tensor like h.

    Raises:
        ModelError: a score of the text is NaN.
    """
    h = h.contiguous()
    held = torch.empty_like(h)
    if not _keep_by_token(bits(h), kept, _floats(norms), *opening, bits(held)):
        raise ModelError(NOT_A_NUMBER)
    return held


def keep_by_window(
    h: Tensor, scores: Tensor, kept: int, width: int, opening: tuple[int, int]
) -> Tensor:
    """Zero all but the `kept` best units of each window in its tokens.

    Args:
        h: (batch, tokens, n), of `DTYPES`.
        scores: (batch, n_windows, n) float32, never negative.
        kept: As in `keep_by_token`.
        width: Tokens per window, counted from the first of the text; the last may have fewer.
        opening: As in `keep_by_token`.

    Returns:
        A new tensor like h.

    Raises:
        ModelError: a score is NaN.
    """
    h = h.contiguous()
    held = torch.empty_like(h)
    ranks = scores.contiguous().view(torch.uint32).numpy()
    if not _keep_by_window(bits(h), ranks, kept, width, *opening, bits(held)):
        raise ModelError(NOT_A_NUMBER)
    return held


class TokenDown:
    """What reads the units of a site, a few tokens at a time, on the units that each chooses.

    That is a down projection, or all maps that read one tensor, such as q, k and v, side by side.
    """

    def __init__(
        self, rows: Tensor, least: int | float, norms: Tensor | None, bias: Tensor | None
    ) -> None:
        """Prepare a site.

        Args:
            rows: (n, d) neuron-major weights, of `DTYPES`; read at every call.
            least: How many units each token keeps, an int, 1 <= least <= n, where ties go to the
                lowest index; or the least score that is kept, a float.
            norms: ||w_j|| (n,) float32, where units are scored by |h_j| ||w_j||; None: by |h_j|.
            bias: (d,) or None.
        """
        n, self._width = rows.shape
        self._rows = bits(rows)
        # 0: not counted
        self._kept = least if isinstance(least, int) else 0
        self._threshold = np.float32(0 if self._kept else least)
        self._norms, self._bias = _floats(norms), _floats(bias)
        # Each token's own: nothing of the last one is read.
        self._scratch = (
            np.empty(n, np.uint32),
            np.empty(n + _ROWS, np.int64),
            np.empty(n + _ROWS, np.float32),
            np.empty(self._width, np.float32),
        )

    def __call__(self, h: Tensor) -> Tensor:
        """h (..., n), tokens of the dtype of the weights -> (..., d).

        Raises:
            ModelError: a score is NaN.
        """
        out = h.new_empty(*h.shape[:-1], self._width)
        tokens, results = bits(h).reshape(-1, h.shape[-1]), bits(out).reshape(-1, self._width)
        choice = (self._kept, self._threshold, self._norms)
        if not _down_tokens(tokens, self._rows, *choice, self._bias, *self._scratch, results):
            raise ModelError(NOT_A_NUMBER)
        return out


class TokenLinear:
    """A linear map of one token: reads its weights in the order of memory, all of them once."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """`weight` (outs, ins), of `DTYPES`, is read at every call; `bias` (outs,) or None."""
        self._outs, ins = weight.shape
        self._weight, self._bias = bits(weight), _floats(bias)
        self._x = np.empty(ins, np.float32)

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., ins), one token of the dtype of the weights -> (..., outs)."""
        out = x.new_empty(*x.shape[:-1], self._outs)
        _project_token(
            bits(x).reshape(-1), self._weight, self._bias, self._x, bits(out).reshape(-1)
        )
        return out


def _floats(values: Tensor | None) -> np.ndarray:
    return _NONE if values is None else values.detach().float().contiguous().numpy()


def bits(values: Tensor) -> np.ndarray:
    """The bits of numbers of `DTYPES`, without a copy: uint32 or uint16."""
    return values.detach().view(_BITS[values.dtype]).numpy()


@compiled
def _keep_by_token(h, kept, norms, first, dense, held):
    batch, tokens, n = h.shape
    keys = np.empty(n, np.uint32)
    for row in range(batch):
        for token in range(tokens):
            if token < first:
                held[row, token] = h[row, token]
                continue
            _fill_keys(h[row, token], norms, keys)
            if not _is_choosable(keys):
                return False
            if token < dense:
                held[row, token] = h[row, token]
                continue
            least, stop = _cut(keys, kept)
            _copy_kept(h[row, token], keys, least, stop, held[row, token])
    return True


@compiled
def _keep_by_window(h, scores, kept, width, first, dense, held):
    batch, tokens, _ = h.shape
    for row in range(batch):
        held[row, :first] = h[row, :first]
        for window in range(scores.shape[1]):
            keys = scores[row, window]
            if not _is_choosable(keys):
                return False
            least, stop = _cut(keys, kept)
            start = first + window * width
            for token in range(start, min(start + width, tokens)):
                if token < dense:
                    held[row, token] = h[row, token]
                else:
                    _copy_kept(h[row, token], keys, least, stop, held[row, token])
    return True


@compiled
def _fill_keys(h, norms, keys):
    """Write the bits of |h|, or of |h| times norms, as float32 to `keys`: they rank as these do."""
    shift = _shift(h)
    for j in range(len(h)):
        keys[j] = (np.uint32(h[j]) << shift) & _NO_SIGN
    if len(norms):
        sizes = keys.view(np.float32)
        for j in range(len(h)):
            sizes[j] *= norms[j]


@compiled
def _shift(bits):
    """By how much the bits of a float32 are further left: a bfloat16 is its upper half."""
    return _HALF if bits.itemsize == 2 else np.uint32(0)


@compiled
def _is_choosable(keys):
    largest = np.uint32(0)
    for j in range(len(keys)):
        largest = max(largest, keys[j])
    return largest <= _INFINITY


@compiled
def _cut(keys, kept):
    """Which keys are the `kept` largest: those >= `least` before `stop`, those > it from there.

    The bits of `least` are found from the highest down, each by a count of the row: it is in
    registers and the nearest cache, and a count takes vector instructions only.
    """
    n = len(keys)
    least, n_least, bit = np.uint32(0), n, _TOP_BIT
    while bit and n_least != kept:
        higher = least | bit
        count = _count(keys, higher)
        if count >= kept:
            least, n_least = higher, count
        bit >>= _ONE
    if n_least == kept:
        return least, n
    left = kept - _count(keys, least + _ONE)
    start = 0
    while True:
        tied = _count_equal(keys[start : start + _BLOCK], least)
        if tied > left:
            break
        left -= tied
        start += _BLOCK
    while left or keys[start] != least:
        left -= keys[start] == least
        start += 1
    return least, start


@compiled
def _count(keys, least):
    count = np.uint32(0)
    for j in range(len(keys)):
        # A wider sum would halve the numbers per instruction.
        count = np.uint32(count + np.uint32(keys[j] >= least))
    return np.int64(count)


@compiled
def _count_equal(keys, key):
    count = np.uint32(0)
    for j in range(len(keys)):
        count = np.uint32(count + np.uint32(keys[j] == key))
    return np.int64(count)


@compiled
def _copy_kept(h, keys, least, stop, held):
    # Of slices the compiler knows that indices do not wrap around, so that it can use vectors.
    _copy_from(h[:stop], keys[:stop], least, held[:stop])
    _copy_from(h[stop:], keys[stop:], least + _ONE, held[stop:])


@compiled
def _copy_from(h, keys, least, held):
    for j in range(len(h)):
        held[j] = h[j] if keys[j] >= least else 0


@compiled
def _down_tokens(h, rows, kept, threshold, norms, bias, keys, units, sizes, sums, out):
    for row in range(len(h)):
        _fill_keys(h[row], norms, keys)
        if not _is_choosable(keys):
            return False
        least, stop = np.float32(threshold).view(np.uint32), len(keys)
        if kept:
            least, stop = _cut(keys, kept)
        _down_token(h[row], rows, least, stop, bias, keys, units, sizes, sums, out[row])
    return True


@compiled
def _down_token(h, rows, least, stop, bias, keys, units, sizes, sums, out):
    n_kept = _list_kept(h, keys, least, stop, units, sizes)
    if len(bias):
        sums[:] = bias
    else:
        sums[:] = 0
    for place in range(0, n_kept, _ROWS):
        _fetch_rows(rows, units[place + _ROWS : min(place + 2 * _ROWS, n_kept)])
        _add_rows(rows, units[place : place + _ROWS], sizes[place : place + _ROWS], sums)
    shift = _shift(h)
    for i in range(len(out)):
        out[i] = _rounded(sums[i], shift)


@compiled
def _list_kept(h, keys, least, stop, units, sizes):
    """Write kept units and their h, and up to a full set of rows others with h = 0."""
    shift = _shift(h)
    count = 0
    for j in range(len(h)):
        # Written in any case, which spares a jump that the CPU would guess wrong half the time.
        # A zero adds nothing, so its row is not read.
        units[count] = j
        sizes[count] = _number(h[j], shift)
        count += keys[j] >= max(least + np.uint32(j >= stop), _ONE)
    for place in range(count, count + _ROWS):
        units[place] = 0
        sizes[place] = 0
    return count


@compiled
def _fetch_rows(rows, units):
    """Ask for the beginning of rows that come next; the processor foresees what follows it."""
    step = _LINE // rows.itemsize
    for unit in units:
        for column in range(0, min(rows.shape[1], _FETCHED * step), step):
            fetch(rows, unit, column)


@vectorised
def _add_rows(rows, units, sizes, sums):
    """Add eight rows of weights, each times its h: as many are read from memory at a time."""
    shift = _shift(rows)
    h0, h1, h2, h3, h4, h5, h6, h7 = (
        sizes[0],
        sizes[1],
        sizes[2],
        sizes[3],
        sizes[4],
        sizes[5],
        sizes[6],
        sizes[7],
    )
    r0, r1, r2, r3 = rows[units[0]], rows[units[1]], rows[units[2]], rows[units[3]]
    r4, r5, r6, r7 = rows[units[4]], rows[units[5]], rows[units[6]], rows[units[7]]
    for i in range(len(sums)):
        sums[i] += (
            (h0 * _number(r0[i], shift) + h1 * _number(r1[i], shift))
            + (h2 * _number(r2[i], shift) + h3 * _number(r3[i], shift))
        ) + (
            (h4 * _number(r4[i], shift) + h5 * _number(r5[i], shift))
            + (h6 * _number(r6[i], shift) + h7 * _number(r7[i], shift))
        )


@compiled
def _number(bits, shift):
    return np.uint32(np.uint32(bits) << shift).view(np.float32)


@compiled
def _project_token(x, weight, bias, numbers, out):
    shift = _shift(x)
    for i in range(len(x)):
        numbers[i] = _number(x[i], shift)
    for j in range(len(weight)):
        total = _dot(weight[j], numbers)
        if len(bias):
            total += bias[j]
        out[j] = _rounded(total, shift)


@vectorised
def _dot(weights, numbers):
    shift = _shift(weights)
    total = np.float32(0)
    for i in range(len(numbers)):
        total += _number(weights[i], shift) * numbers[i]
    return total


@compiled
def _rounded(number, shift):
    """The bits of a float32, or of the bfloat16 that is next to it; halves go to the even one."""
    bits = np.float32(number).view(np.uint32)
    if shift:
        bits += np.uint32(0x7FFF) + ((bits >> _HALF) & _ONE)
    return bits >> shift
