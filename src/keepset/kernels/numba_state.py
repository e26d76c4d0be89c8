"""The loops of `keepset.kernels.numba_scan`, over contiguous numpy arrays, on one thread.

Shapes are those of `numba_scan.Inputs`. The state of a head, 16 KB at 64 x 64, stays in the first
cache; inner loops run over neighbours in memory, so that they become vectors. Steps of four are
`while` loops: LLVM leaves those over `range(0, n, 4)` scalar.
"""

from __future__ import annotations

import numpy as np

from keepset.kernels.numba_jit import vectorised


@vectorised
def _advance_and_read(x, step, decay, B, C, D, state, y):
    """One token of one head. state (n, head_dim); B, C (n,); x, y (head_dim,).

    Four channels at a time, so that x and y are loaded once for all of them.
    """
    n_state, head_dim = state.shape
    for p in range(head_dim):
        y[p] = D * x[p]
    n = 0
    while n + 4 <= n_state:
        b0, b1, b2, b3 = step * B[n], step * B[n + 1], step * B[n + 2], step * B[n + 3]
        c0, c1, c2, c3 = C[n], C[n + 1], C[n + 2], C[n + 3]
        for p in range(head_dim):
            v = x[p]
            h0 = state[n, p] * decay + b0 * v
            h1 = state[n + 1, p] * decay + b1 * v
            h2 = state[n + 2, p] * decay + b2 * v
            h3 = state[n + 3, p] * decay + b3 * v
            state[n, p] = h0
            state[n + 1, p] = h1
            state[n + 2, p] = h2
            state[n + 3, p] = h3
            y[p] += (c0 * h0 + c1 * h1) + (c2 * h2 + c3 * h3)
        n += 4
    while n < n_state:
        b, c = step * B[n], C[n]
        for p in range(head_dim):
            h = state[n, p] * decay + b * x[p]
            state[n, p] = h
            y[p] += c * h
        n += 1


@vectorised
def _advance_and_size(x, step, decay, B, state, sizes):
    """One token of one head; adds H^2 to sizes (n,). state (head_dim, n); four rows at a time."""
    head_dim, n_state = state.shape
    p = 0
    while p + 4 <= head_dim:
        x0, x1, x2, x3 = step * x[p], step * x[p + 1], step * x[p + 2], step * x[p + 3]
        for n in range(n_state):
            v = B[n]
            h0 = state[p, n] * decay + x0 * v
            h1 = state[p + 1, n] * decay + x1 * v
            h2 = state[p + 2, n] * decay + x2 * v
            h3 = state[p + 3, n] * decay + x3 * v
            state[p, n] = h0
            state[p + 1, n] = h1
            state[p + 2, n] = h2
            state[p + 3, n] = h3
            sizes[n] += (h0 * h0 + h1 * h1) + (h2 * h2 + h3 * h3)
        p += 4
    while p < head_dim:
        x0 = step * x[p]
        for n in range(n_state):
            h0 = state[p, n] * decay + x0 * B[n]
            state[p, n] = h0
            sizes[n] += h0 * h0
        p += 1


@vectorised
def dense(x, step, decay, B, C, D, state, y):
    """All tokens of all heads; `state` (batch, heads, n, head_dim) is advanced in place."""
    batch, tokens, heads, _ = x.shape
    per_group = heads // B.shape[2]
    for b in range(batch):
        for h in range(heads):
            g = h // per_group
            for t in range(tokens):
                _advance_and_read(
                    x[b, t, h], step[b, t, h], decay[b, t, h], B[b, t, g], C[b, t, g], D[h],
                    state[b, h], y[b, t, h],
                )  # fmt: skip


@vectorised
def sizes(x, step, decay, B, sizes):
    """Sizes of all channels at all tokens, from the empty state; `sizes` starts at zero."""
    batch, tokens, heads, head_dim = x.shape
    per_group = heads // B.shape[2]
    state = np.empty((head_dim, B.shape[3]), np.float32)
    for b in range(batch):
        for h in range(heads):
            g = h // per_group
            state[:] = 0
            for t in range(tokens):
                _advance_and_size(
                    x[b, t, h], step[b, t, h], decay[b, t, h], B[b, t, g], state, sizes[b, t, g]
                )


@vectorised
def _choose(score, kept, channels):
    """Write the `kept` best of score (n,) to `channels`, ascending; False if a score is NaN.

    A channel is kept if fewer than `kept` stand before it: larger ones, and equal ones of a lower
    index.
    """
    n_state = len(score)
    count = 0
    for n in range(n_state):
        value = score[n]
        if np.isnan(value):
            return False
        before = np.float32(0)  # a float, so that the loops are vectors
        for m in range(n):
            before += np.float32(1) if score[m] >= value else np.float32(0)
        for m in range(n_state):
            if m > n:
                before += np.float32(1) if score[m] > value else np.float32(0)
        if before < kept:
            channels[count] = n
            count += 1
    return True


@vectorised
def _size_group(x, step, decay, B, b, t, g, state, sizes):
    """One token of the heads of a group: state (heads of the group, head_dim, n), sizes (n,)."""
    per_group = len(state)
    sizes[:] = 0
    for i in range(per_group):
        h = g * per_group + i
        _advance_and_size(x[b, t, h], step[b, t, h], decay[b, t, h], B[b, t, g], state[i], sizes)


@vectorised
def _read_group(x, C, D, b, t, g, state, factor, y):
    """Read the channels of a state as it is, each times `factor` (n,)."""
    per_group, head_dim, n_state = state.shape
    read = np.empty(n_state, np.float32)
    for n in range(n_state):
        read[n] = C[b, t, g, n] * factor[n]
    for i in range(per_group):
        h = g * per_group + i
        for p in range(head_dim):
            total = np.float32(0)
            for n in range(n_state):
                total += state[i, p, n] * read[n]
            y[b, t, h, p] = total + D[h] * x[b, t, h, p]


@vectorised
def _rerun_group(x, step, decay, B, C, D, b, g, begin, end, first, start, channels, y):
    """Run tokens begin..end with some channels, and write y from token `first` on.

    start (heads of the group, head_dim, n) is the state before them.
    """
    per_group, head_dim, _ = start.shape
    n_kept = len(channels)
    state = np.empty((n_kept, head_dim), np.float32)
    written, read = np.empty(n_kept, np.float32), np.empty(n_kept, np.float32)
    unused = np.empty(head_dim, np.float32)
    for i in range(per_group):
        h = g * per_group + i
        for k in range(n_kept):
            for p in range(head_dim):
                state[k, p] = start[i, p, channels[k]]
        for t in range(begin, end):
            for k in range(n_kept):
                written[k] = B[b, t, g, channels[k]]
                read[k] = C[b, t, g, channels[k]]
            _advance_and_read(
                x[b, t, h], step[b, t, h], decay[b, t, h], written, read, D[h], state,
                unused if t < first else y[b, t, h],
            )  # fmt: skip


@vectorised
def windows(x, step, decay, B, C, D, weights, valid, opening, kept, width, n_before,
             causal, forget, by_size, y):  # fmt: skip
    """See `held_windows`. False if a score is NaN.

    Channels do not influence one another. So one pass over a window scores every channel as if it
    were kept, and a second runs those that are kept, from the same start.
    """
    batch, tokens, heads, head_dim = x.shape
    groups, n_state = B.shape[2:]
    state = np.empty((heads // groups, head_dim, n_state), np.float32)
    start = np.empty_like(state)
    sizes, means = np.empty(n_state, np.float32), np.empty(n_state, np.float32)
    everything, factor = np.ones(n_state, np.float32), np.empty(n_state, np.float32)
    chosen, held = np.empty(kept, np.int64), np.empty(kept, np.int64)
    known = len(opening) > 0
    for b in range(batch):
        for g in range(groups):
            state[:] = 0
            for t in range(n_before):
                _size_group(x, step, decay, B, b, t, g, state, sizes)
                _read_group(x, C, D, b, t, g, state, everything, y)
            for begin in range(n_before, tokens, width):
                end = min(begin + width, tokens)
                opens = causal and begin == n_before
                first = begin  # the first token that is read under the set
                if end > begin + 1:
                    start[:] = state
                means[:] = 0
                count = 0
                for t in range(begin, end):
                    _size_group(x, step, decay, B, b, t, g, state, sizes)
                    for n in range(n_state):
                        weight = weights[b, t - n_before, g, n]
                        sizes[n] = weight * sizes[n] if by_size else weight
                    if valid[b, t - n_before]:
                        count += 1
                        for n in range(n_state):
                            means[n] += sizes[n]
                    if opens and t == begin:
                        if not _choose(opening[b, g] if known else sizes, kept, held):
                            return False
                        if not known:
                            _read_group(x, C, D, b, t, g, state, everything, y)
                            first += 1
                for n in range(n_state):
                    means[n] /= np.float32(max(count, 1))
                if not _choose(means, kept, chosen):
                    return False
                if not causal:
                    held[:] = chosen
                factor[:] = 0
                for channel in held:
                    factor[channel] = 1
                if first < end and end == begin + 1:
                    _read_group(x, C, D, b, begin, g, state, factor, y)
                elif first < end:
                    _rerun_group(x, step, decay, B, C, D, b, g, begin, end, first, start, held, y)
                if forget and first < end:
                    for i in range(len(state)):
                        for p in range(head_dim):
                            for n in range(n_state):
                                state[i, p, n] *= factor[n]
                held[:] = chosen
    return True


@vectorised
def convolve(x, taps, bias, y):
    """Depthwise causal convolution: x, y (batch, tokens, channels); taps (width, channels)."""
    batch, tokens, channels = x.shape
    width = len(taps)
    for b in range(batch):
        for t in range(tokens):
            for c in range(channels):
                y[b, t, c] = bias[c]
            for tap in range(max(0, width - 1 - t), width):
                at = t - (width - 1) + tap
                for c in range(channels):
                    y[b, t, c] += taps[tap, c] * x[b, at, c]
