"""The compiled kernels of units on a CPU; what calls them is in `keepset.kernels.numba_ffn`.

Units are ranked by the bits of their scores: those of floats that are not negative are in the order
of the floats. Numbers are passed as their bits, float32 or bfloat16 (its upper half).
"""

from __future__ import annotations

import numpy as np

from keepset.kernels.numba_jit import compiled, fetch, vectorised

_INFINITY = np.uint32(0x7F800000)
_NO_SIGN = np.uint32(0x7FFFFFFF)
_HALF = np.uint32(16)
_ONE = np.uint32(1)
_UNIT, _HALF_ONE, _INFINITE = np.float32(1), np.float32(0.5), np.float32(np.inf)
_LEAST, _MOST, _TO_WHOLE = np.float32(-87), np.float32(88), np.float32(1.5 * 2**23)
_LOG2_E, _LN2_HIGH, _LN2_LOW = (
    np.float32(1.44269504),
    np.float32(0.693359375),
    np.float32(-2.12194440e-4),
)
_P0, _P1, _P2 = (
    np.float32(1.9875691500e-4),
    np.float32(1.3981999507e-3),
    np.float32(8.3334519073e-3),
)
_P3, _P4 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1)
_TOP_BIT = np.uint32(1 << 30)
# Ties are counted in blocks, which the compiler turns into vector instructions.
_BLOCK = 64
# Rows that are added at a time, so that as many are read from memory.
ROWS = 8
# Bytes that are fetched from memory together, and how many such pieces of a row in advance.
_LINE, _FETCHED = 64, 12


@compiled
def keep_by_tokens(h, kept, norms, first, dense, held):
    """Hold passages; False where a score is NaN."""
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
def keep_by_windows(h, scores, kept, width, first, dense, held):
    """Hold passages by the scores of windows; False where one is NaN."""
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
def down_tokens(h, rows, kept, threshold, norms, bias, keys, units, sizes, sums, out):
    """Choose the units of tokens and add up their rows; False where a score is NaN."""
    for row in range(len(h)):
        if not _down_token(
            h[row], h[row], rows, kept, threshold, norms, bias, keys, units, sizes, sums, out[row]
        ):
            return False
    return True


@compiled
def _down_token(h, scored, rows, kept, threshold, norms, bias, keys, units, sizes, sums, out):
    n_kept = _choose(h, scored, kept, threshold, norms, keys, units, sizes)
    if n_kept >= 0:
        _add_kept(rows, n_kept, bias, units, sizes, sums, out)
    return n_kept >= 0


@compiled
def _choose(h, scored, kept, threshold, norms, keys, units, sizes):
    """List the kept units by the size of `scored`; -1 where that is NaN."""
    _fill_keys(scored, norms, keys)
    if not _is_choosable(keys):
        return -1
    least, stop = np.float32(threshold).view(np.uint32), len(keys)
    if kept:
        least, stop = _cut(keys, kept)
    return _list_kept(h, keys, least, stop, units, sizes)


@compiled
def _add_kept(rows, n_kept, bias, units, sizes, sums, out):
    if len(bias):
        sums[:] = bias
    else:
        sums[:] = 0
    for place in range(0, n_kept, ROWS):
        _fetch_rows(rows, units[place + ROWS : min(place + 2 * ROWS, n_kept)])
        _add_rows(rows, units[place : place + ROWS], sizes[place : place + ROWS], sums)
    shift = _shift(out)
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
    for place in range(count, count + ROWS):
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
    h0, h1, h2, h3 = sizes[0], sizes[1], sizes[2], sizes[3]
    h4, h5, h6, h7 = sizes[4], sizes[5], sizes[6], sizes[7]
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
def project_token(x, weight, bias, numbers, out):
    """One token through a linear map, all of it."""
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


@compiled
def block_tokens(x, starts, relu, by_gate, first, down, parts, out):
    """A block of which both sites choose: 0, or the site whose scores are NaN, 1 or 2."""
    rows, kept, threshold, norms, bias, keys, units, sizes, sums = first
    rows2, kept2, threshold2, norms2, bias2, keys2, units2, sizes2, sums2 = down
    outs, gate, h = parts
    n = len(h)
    for row in range(len(x)):
        token = x[row]
        if not _down_token(
            token, token, rows, kept, threshold, norms, bias, keys, units, sizes, sums, outs
        ):
            return 1
        _activate(outs[starts[0] : starts[0] + n], relu, sizes2, gate)
        h[:] = gate
        if starts[1] >= 0:
            _multiply(gate, outs[starts[1] : starts[1] + n], h)
        scored = gate if by_gate else h
        if not _down_token(
            h, scored, rows2, kept2, threshold2, norms2, bias2, keys2, units2, sizes2, sums2,
            out[row],
        ):  # fmt: skip
            return 2
    return 0


@compiled
def gate_tokens(x, relu, gates, gate_bias, ups, up_bias, down, parts, out):
    """A gated block whose gate chooses, read before the rows of up: 0, or 2 if it is NaN."""
    rows, kept, threshold, norms, bias, keys, units, sizes, sums = down
    numbers, gate = parts
    shift = _shift(x)
    for row in range(len(x)):
        project_token(x[row], gates, gate_bias, numbers, gate)
        _activate(gate, relu, sizes, gate)
        n_kept = _choose(gate, gate, kept, threshold, norms, keys, units, sizes)
        if n_kept < 0:
            return 2
        for place in range(n_kept):
            unit = units[place]
            _fetch_rows(ups, units[place + 2 : min(place + 3, n_kept)])
            up = _dot(ups[unit], numbers)
            if len(up_bias):
                up += up_bias[unit]
            up = _number(_rounded(up, shift), shift)
            sizes[place] = _number(_rounded(sizes[place] * up, shift), shift)
        _add_kept(rows, n_kept, bias, units, sizes, sums, out[row])
    return 0


@compiled
def _activate(before, relu, numbers, after):
    """Write ReLU or SiLU of `before` to `after`; `numbers` is room for as many float32."""
    shift = _shift(before)
    for j in range(len(before)):
        numbers[j] = _number(before[j], shift)
    for j in range(len(before)):
        x = numbers[j]
        # NaN is not less than anything, and stays.
        after[j] = _rounded(
            (np.float32(0) if x < 0 else x) if relu else x / _exp_and_one(-x), shift
        )


@compiled
def _exp_and_one(x):
    """exp(x) + 1 as float32: a power of two, times a polynomial (Cephes, expf) of what is left.

    Without a branch or a call, so that the compiler can use vectors.
    """
    is_vast = x > _MOST
    x = _LEAST if x < _LEAST else (_MOST if is_vast else x)
    power = x * _LOG2_E + _TO_WHOLE  # rounded to a whole number, in the lowest bits
    whole = power - _TO_WHOLE
    r = x - whole * _LN2_HIGH - whole * _LN2_LOW
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _HALF_ONE
    p = p * r * r + r + _UNIT
    scale = np.uint32((np.float32(power).view(np.uint32) << np.uint32(23)) + np.uint32(0x3F800000))
    return _INFINITE if is_vast else p * np.uint32(scale).view(np.float32) + _UNIT


@compiled
def _multiply(one, other, out):
    shift = _shift(one)
    for j in range(len(out)):
        out[j] = _rounded(_number(one[j], shift) * _number(other[j], shift), shift)
