"""The Mamba-2 recurrence on one thread of a CPU, compiled by numba, in float32.

H(t) = exp(dt(t) A) H(t-1) + dt(t) x(t) B(t)^T and y(t) = H(t) C(t) + D x(t) (Dao and Gu 2024,
equation 1), token after token; the loops are in `keepset.kernels.numba_state`. Plain references are
`keepset.kernels.scan` and `keepset.hold.recurrence.Recurrence`. What sizes and windows read is
shared with the delta rule (`keepset.kernels.numba_delta`). Importing this module needs numba
(`keepset.kernels.numba_jit`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keepset.errors import ModelError
from keepset.kernels import numba_state as loops
from keepset.kernels.naive import time_steps
from keepset.kernels.scan import CHUNK, activated, causal_conv, chunk_scan

Array = Any
"""A contiguous numpy array, float32 where nothing else is said."""


@dataclass(frozen=True)
class Inputs:
    """What a scan reads, as kernels take it: contiguous, float32."""

    x: Array  # (batch, tokens, heads, head_dim)
    step: Array  # (batch, tokens, heads)
    decay: Array  # (batch, tokens, heads), exp(step A)
    B: Array  # (batch, tokens, groups, n)
    C: Array  # (batch, tokens, groups, n)
    D: Array  # (heads,), zero without a skip connection
    corrects: bool = False  # whether x - H B is written, by the delta rule; D is zero then

    @classmethod
    def of(
        cls,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        dt_bias: Tensor | None = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        **_: Any,
    ) -> Inputs:
        """From the arguments of a scan, as in `keepset.kernels.scan.chunk_scan`."""
        step = time_steps(dt, dt_bias, dt_softplus, dt_limit)
        decay = (step * A.float()).exp()
        skip = x.new_zeros(x.shape[2]) if D is None else D
        return cls(*map(array, (x, step, decay, B, C, skip)))


def array(values: Tensor) -> Array:
    """Contiguous float32, without a copy where it is that already."""
    return values.detach().float().contiguous().numpy()


def scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int = CHUNK,
    D: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    **options: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """`keepset.kernels.scan.chunk_scan`, with its arguments; gradients and float64 in torch.

    Returns:
        (batch, tokens, heads, head_dim), and the last state (batch, heads, head_dim, n); float32.
    """
    tensors = (hidden_states, dt, A, B, C)
    if needs_torch(*tensors):
        return chunk_scan(
            *tensors, chunk_size, D=D, initial_states=initial_states,
            return_final_states=return_final_states, **options,
        )  # fmt: skip
    given = Inputs.of(*tensors, D, **options)
    batch, _, heads, head_dim = hidden_states.shape
    # A channel is one run of head_dim numbers, so that reading needs no sum across a vector.
    if initial_states is None:
        state = np.zeros((batch, heads, B.shape[-1], head_dim), np.float32)
    else:
        state = array(initial_states.transpose(2, 3)).copy()
    y = torch.empty(hidden_states.shape, dtype=torch.float32)
    loops.dense(given.x, given.step, given.decay, given.B, given.C, given.D, state, y.numpy())
    if not return_final_states:
        return y
    return y, torch.from_numpy(state).transpose(2, 3).contiguous()


def convolution(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **options: Any,
) -> Tensor:
    """`keepset.kernels.scan.causal_conv`, with its arguments; gradients and float64 in torch.

    Returns:
        (batch, channels, tokens), the dtype of `hidden_states`; sums and activation are float32.

    Raises:
        ValueError: another activation.
    """
    if needs_torch(hidden_states, weight):
        return causal_conv(hidden_states, weight, bias, activation, **options)
    x = array(hidden_states.transpose(1, 2))
    y = torch.empty(x.shape, dtype=torch.float32)
    offset = weight.new_zeros(len(weight)) if bias is None else bias
    loops.convolve(x, array(weight.t()), array(offset), y.numpy())
    return activated(y, activation).to(hidden_states.dtype).transpose(1, 2)


def needs_torch(*tensors: Tensor) -> bool:
    """Whether gradients, or more than float32, are asked for.

    A pass with gradients runs in torch from its first layer on, so that it is one path.
    """
    return torch.is_grad_enabled() or any(values.dtype == torch.float64 for values in tensors)


def channel_sizes(given: Inputs) -> Tensor:
    """The sum of H^2 over heads and head dims of each group at every token.

    The plain reference is `keepset.hold.recurrence.Recurrence.sizes`, from the empty state.

    Returns:
        (batch, tokens, groups, n) float32.
    """
    sizes = torch.zeros(given.B.shape, dtype=torch.float32)
    loops.sizes(given.x, given.step, given.decay, given.B, given.corrects, sizes.numpy())
    return sizes


@dataclass(frozen=True)
class Choice:
    """How each window of each row chooses its channels (`keepset.hold.state.StateWindows`)."""

    kept: int
    """Channels per group."""
    width: int
    """Tokens per window."""
    n_before: int
    """Tokens that stand before the first window, written and read in full."""
    causal: bool
    """Whether a window is held under the set that was chosen on the window before."""
    forget: bool
    """Whether what is not kept is zero from a window's start; else it is only not read."""
    by_size: bool
    """Whether a score is `weights` times the channel's size; else it is `weights`."""


def held_windows(
    given: Inputs, weights: Tensor, choice: Choice, valid: Tensor | None, opening: Tensor | None
) -> Tensor:
    """Run the recurrence under a rule that chooses channels window by window.

    The plain reference is `keepset.hold.state.StateWindows` in torch.

    Args:
        given: The scan.
        weights: (batch, tokens - n_before, groups, n), see `Choice.by_size`.
        choice: How channels are chosen; ties go to the lowest index.
        valid: (batch, tokens - n_before) bool, False at padding; None where nothing is padded.
        opening: (batch, groups, n), what the first window of a causal rule chooses by; None: by the
            scores of its first token, which itself reads everything.

    Returns:
        y (batch, tokens, heads, head_dim) float32.

    Raises:
        ModelError: a score is NaN.
    """
    y = torch.empty(given.x.shape, dtype=torch.float32)
    if valid is None:
        valid = torch.ones(weights.shape[:2], dtype=torch.bool)
    first = weights.new_zeros(0, *weights.shape[2:]) if opening is None else opening
    finite = loops.windows(
        given.x, given.step, given.decay, given.B, given.C, given.D, given.corrects,
        array(weights), valid.contiguous().numpy(), array(first),
        choice.kept, choice.width, choice.n_before, choice.causal, choice.forget, choice.by_size,
        y.numpy(),
    )  # fmt: skip
    if not finite:
        raise ModelError("NaN among the scores of channels: nothing can be chosen")
    return y
