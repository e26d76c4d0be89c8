"""The loops of `keepset.kernels.numba_scan`, over contiguous numpy arrays, on one thread.

Shapes are those of `numba_scan.Inputs`. The state of a head, 16 KB at 64 x 64, stays in the first
cache; inner loops run over neighbours in memory, so that they become vectors. Steps of four are
`while` loops: LLVM leaves those over `range(0, n, 4)` scalar.

Mamba-2 writes x B^T to the state, the delta rule (`corrects`) writes (x - H B) B^T, where H is the
state as it has faded. That is all that differs here.
"""

from __future__ import annotations

import numpy as np

from keepset.kernels.numba_jit import vectorised


@vectorised
def _correct(x, decay, B, state, gain):
    """gain = x - decay H B (head_dim,); state (n, head_dim)."""
    n_state, head_dim = state.shape
    gain[:] = 0
    n = 0
    while n + 4 <= n_state:
        b0, b1, b2, b3 = B[n], B[n + 1], B[n + 2], B[n + 3]
        for p in range(head_dim):
            gain[p] += (b0 * state[n, p] + b1 * state[n + 1, p]) + (
                b2 * state[n + 2, p] + b3 * state[n + 3, p]
            )
        n += 4
    while n < n_state:
        for p in range(head_dim):
            gain[p] += B[n] * state[n, p]
        n += 1
    for p in range(head_dim):
        gain[p] = x[p] - decay * gain[p]


@vectorised
def _correct_turned(x, decay, B, state, gain):
    """`_correct`, with state (head_dim, n)."""
    head_dim, n_state = state.shape
    for p in range(head_dim):
        held = np.float32(0)
        for n in range(n_state):
            held += state[p, n] * B[n]
        gain[p] = x[p] - decay * held


@vectorised
def _correct_and_read(x, step, decay, B, C, state, y):
    """One token of one head under the delta rule; state (head_dim, n), four rows at a time.

    H C of the new state is that of the old one, and what the token wrote times B C: so a row is
    multiplied by B and C together, before it is written.
    """
    head_dim, n_state = state.shape
    both = np.float32(0)
    for n in range(n_state):
        both += B[n] * C[n]
    p = 0
    while p + 4 <= head_dim:
        h0, h1, h2, h3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        r0, r1, r2, r3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for n in range(n_state):
            b, c = B[n], C[n]
            h0 += state[p, n] * b
            h1 += state[p + 1, n] * b
            h2 += state[p + 2, n] * b
            h3 += state[p + 3, n] * b
            r0 += state[p, n] * c
            r1 += state[p + 1, n] * c
            r2 += state[p + 2, n] * c
            r3 += state[p + 3, n] * c
        g0, g1 = step * (x[p] - decay * h0), step * (x[p + 1] - decay * h1)
        g2, g3 = step * (x[p + 2] - decay * h2), step * (x[p + 3] - decay * h3)
        y[p], y[p + 1] = decay * r0 + g0 * both, decay * r1 + g1 * both
        y[p + 2], y[p + 3] = decay * r2 + g2 * both, decay * r3 + g3 * both
        for n in range(n_state):
            b = B[n]
            state[p, n] = state[p, n] * decay + g0 * b
            state[p + 1, n] = state[p + 1, n] * decay + g1 * b
            state[p + 2, n] = state[p + 2, n] * decay + g2 * b
            state[p + 3, n] = state[p + 3, n] * decay + g3 * b
        p += 4
    while p < head_dim:
        h0, r0 = np.float32(0), np.float32(0)
        for n in range(n_state):
            h0 += state[p, n] * B[n]
            r0 += state[p, n] * C[n]
        g0 = step * (x[p] - decay * h0)
        y[p] = decay * r0 + g0 * both
        for n in range(n_state):
            state[p, n] = state[p, n] * decay + g0 * B[n]
        p += 1


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
def _read_corrected(x, step, decay, B, C, b, g, begin, end, factor, state, y):
    """Run tokens begin..end of a group under the delta rule, each channel read times `factor` (n,).

    state (heads of the group, head_dim, n) is advanced in place.
    """
    per_group = len(state)
    read = np.empty(len(factor), np.float32)
    for i in range(per_group):
        h = g * per_group + i
        for t in range(begin, end):
            for n in range(len(factor)):
                read[n] = C[b, t, g, n] * factor[n]
            _correct_and_read(
                x[b, t, h], step[b, t, h], decay[b, t, h], B[b, t, g], read, state[i], y[b, t, h]
            )


@vectorised
def dense_delta(x, step, decay, B, C, state, y):
    """`dense` under the delta rule; `state` (batch, groups, heads of the group, head_dim, n)."""
    batch, tokens, groups, n_state = B.shape
    factor = np.ones(n_state, np.float32)
    for b in range(batch):
        for g in range(groups):
            _read_corrected(x, step, decay, B, C, b, g, 0, tokens, factor, state[b, g], y)


@vectorised
def sizes(x, step, decay, B, corrects, sizes):
    """Sizes of all channels at all tokens, from the empty state; `sizes` starts at zero."""
    batch, tokens, heads, head_dim = x.shape
    groups, n_state = B.shape[2:]
    state = np.empty((heads // groups, head_dim, n_state), np.float32)
    gain = np.empty(head_dim, np.float32)
    for b in range(batch):
        for g in range(groups):
            state[:] = 0
            for t in range(tokens):
                _size_group(x, step, decay, B, corrects, b, t, g, state, gain, sizes[b, t, g])


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
def _size_group(x, step, decay, B, corrects, b, t, g, state, gain, sizes):
    """One token of the heads of a group: state (heads of the group, head_dim, n), sizes (n,)."""
    per_group = len(state)
    sizes[:] = 0
    for i in range(per_group):
        h = g * per_group + i
        if corrects:
            _correct_turned(x[b, t, h], decay[b, t, h], B[b, t, g], state[i], gain)
        _advance_and_size(
            gain if corrects else x[b, t, h], step[b, t, h], decay[b, t, h], B[b, t, g], state[i],
            sizes,
        )  # fmt: skip


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
def _rerun_group(x, step, decay, B, C, D, corrects, b, g, begin, end, channels, state, y):
    """Run tokens begin..end with some channels of `state`.

    state (heads of the group, head_dim, n) is advanced in place in these channels.
    """
    per_group, head_dim, _ = state.shape
    n_kept = len(channels)
    part, gain = np.empty((n_kept, head_dim), np.float32), np.empty(head_dim, np.float32)
    written, read = np.empty(n_kept, np.float32), np.empty(n_kept, np.float32)
    for i in range(per_group):
        h = g * per_group + i
        for k in range(n_kept):
            for p in range(head_dim):
                part[k, p] = state[i, p, channels[k]]
        for t in range(begin, end):
            for k in range(n_kept):
                written[k] = B[b, t, g, channels[k]]
                read[k] = C[b, t, g, channels[k]]
            if corrects:
                _correct(x[b, t, h], decay[b, t, h], written, part, gain)
            _advance_and_read(
                gain if corrects else x[b, t, h], step[b, t, h], decay[b, t, h], written, read,
                D[h], part, y[b, t, h],
            )  # fmt: skip
        for k in range(n_kept):
            for p in range(head_dim):
                state[i, p, channels[k]] = part[k, p]


@vectorised
def windows(x, step, decay, B, C, D, corrects, weights, valid, opening, kept, width, n_before,
             causal, forget, by_size, y):  # fmt: skip
    """See `held_windows`. False if a score is NaN.

    A first pass over a window scores every channel as if it were kept, and a second one reads, from
    the same start: the channels that are kept, or all, where those that are not read change what
    the others hold. What is forgotten is zero from the start of the second.
    """
    batch, tokens, heads, head_dim = x.shape
    groups, n_state = B.shape[2:]
    state = np.empty((heads // groups, head_dim, n_state), np.float32)
    start = np.empty_like(state)
    gain = np.empty(head_dim, np.float32)
    sizes, means = np.empty(n_state, np.float32), np.empty(n_state, np.float32)
    everything, factor = np.ones(n_state, np.float32), np.empty(n_state, np.float32)
    all_channels = np.arange(n_state)
    chosen, held = np.empty(kept, np.int64), np.empty(kept, np.int64)
    known = len(opening) > 0
    for b in range(batch):
        for g in range(groups):
            state[:] = 0
            _rerun_group(
                x, step, decay, B, C, D, corrects, b, g, 0, n_before, all_channels, state, y
            )
            for begin in range(n_before, tokens, width):
                end = min(begin + width, tokens)
                opens = causal and begin == n_before
                first = begin  # the first token that is read under the set
                if (corrects and forget) or end > begin + 1:
                    start[:] = state
                means[:] = 0
                count = 0
                for t in range(begin, end):
                    _size_group(x, step, decay, B, corrects, b, t, g, state, gain, sizes)
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
                            start[:] = state
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
                if first < end and forget and corrects:
                    for i in range(len(state)):
                        for p in range(head_dim):
                            for n in range(n_state):
                                state[i, p, n] = start[i, p, n] * factor[n]
                    _rerun_group(
                        x, step, decay, B, C, D, corrects, b, g, first, end, held, state, y
                    )
                elif first + 1 == end:
                    _read_group(x, C, D, b, first, g, state, factor, y)
                elif first < end and corrects:
                    _read_corrected(x, step, decay, B, C, b, g, first, end, factor, start, y)
                elif first < end:
                    _rerun_group(
                        x, step, decay, B, C, D, corrects, b, g, first, end, held, start, y
                    )
                if first < end and forget and not corrects:
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
