"""The negative log-likelihood of tokens, on a CPU: one pass over each row of logits.

The plain reference is in `keepset.measure.loss`: `torch.logsumexp` over rows turned into float32.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from keepset.kernels.numba_jit import compiled, vectorised

_UPPER, _MANTISSA, _BIAS = np.uint32(16), np.int32(23), np.int32(127)
# exp(x) = 2^n exp(r), with n whole and |r| <= log(2) / 2, where a polynomial is exact to the last
# bit or two of a float32: Cephes, expf. log(2) is taken in two parts, so that r is exact.
_LOG2_E = np.float32(1.4426950408889634)
_LOG_2, _LOG_2_REST = np.float32(0.693359375), np.float32(-2.12194440e-4)
_P0, _P1, _P2 = (
    np.float32(1.9875691500e-4),
    np.float32(1.3981999507e-3),
    np.float32(8.3334519073e-3),
)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(0.5)
_LOWEST, _HALF, _ONE = np.float32(-87), np.float32(0.5), np.float32(1)
# A block of float32 sums is added in float64: its own rounding is below 1e-7 of it.
_BLOCK = 512
_LANES = 64


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p of a target per row, in nats.

    Args:
        logits: (rows, words) float32 or bfloat16.
        targets: (rows,) int64.

    Returns:
        (rows,) float64; NaN where logits are NaN or infinitely large.
    """
    bits = torch.uint16 if logits.dtype == torch.bfloat16 else torch.uint32
    nll = np.empty(len(targets), np.float64)
    _token_nll(logits.detach().view(bits).numpy(), targets.numpy(), nll)
    return torch.from_numpy(nll)


@compiled
def _token_nll(logits, targets, nll):
    numbers = np.empty(logits.shape[1], np.float32)
    lanes = np.empty(_LANES, np.float32)
    for row in range(len(targets)):
        _widen(logits[row], numbers)
        largest = _largest(numbers, lanes)
        total = 0.0
        for start in range(0, len(numbers), _BLOCK):
            total += _sum_of_exp(numbers[start : start + _BLOCK], largest)
        nll[row] = np.float64(largest) + np.log(total) - np.float64(numbers[targets[row]])


@compiled
def _widen(bits, numbers):
    shift = _UPPER if bits.itemsize == 2 else np.uint32(0)
    for i in range(len(bits)):
        numbers[i] = np.uint32(np.uint32(bits[i]) << shift).view(np.float32)


@compiled
def _largest(numbers, lanes):
    """The largest number that is not NaN; in lanes, as vector instructions compare lane by lane."""
    lanes[:] = -np.inf
    for start in range(0, len(numbers), _LANES):
        block = numbers[start : start + _LANES]
        for i in range(len(block)):
            lanes[i] = block[i] if block[i] > lanes[i] else lanes[i]
    return lanes.max()


@vectorised
def _sum_of_exp(numbers, largest):
    total = np.float32(0)
    for i in range(len(numbers)):
        total += _exp(numbers[i] - largest)
    return total


@vectorised
def _exp(x):
    """exp of x <= 0; of less than -87 as of -87, 1e-38; NaN of NaN."""
    x = _LOWEST if x < _LOWEST else x
    n = np.floor(x * _LOG2_E + _HALF)
    r = x - n * _LOG_2 - n * _LOG_2_REST
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    power = np.int32((np.int32(n) + _BIAS) << _MANTISSA).view(np.float32)
    return (p * r * r + r + _ONE) * power
