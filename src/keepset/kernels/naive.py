"""Plain references, for reading and for tests: nothing here is fast."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def time_steps(
    dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool, dt_limit: tuple[float, float]
) -> Tensor:
    """The step sizes that a Mamba-2 scan uses: softplus(dt + dt_bias), clamped to `dt_limit`.

    Args:
        dt: (batch, tokens, heads).
        dt_bias: (heads,) or None.
        dt_softplus: Whether softplus is taken.
        dt_limit: Smallest and largest step.

    Returns:
        (batch, tokens, heads), at least float32.
    """
    dt = dt if dt.dtype == torch.float64 else dt.float()
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    if dt_softplus:
        dt = F.softplus(dt)
    return dt.clamp(*dt_limit)


def scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    initial_states: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence of Mamba-2, one token after the other (Dao and Gu 2024, equation 1).

    H(t) = exp(dt(t) A) H(t-1) + dt(t) x(t) B(t)^T and y(t) = H(t) C(t) + D x(t), per head; heads
    of a group share B and C.

    Args:
        x: (batch, tokens, heads, head_dim).
        dt: (batch, tokens, heads) step sizes, as `time_steps` returns them.
        A: (heads,) negative.
        B: (batch, tokens, groups, n) what is written.
        C: (batch, tokens, groups, n) what is read.
        D: (heads,) skip connection.
        initial_states: (batch, heads, head_dim, n).

    Returns:
        y (batch, tokens, heads, head_dim); every state H (batch, tokens, heads, head_dim, n); the
        last state (batch, heads, head_dim, n).
    """
    batch, tokens, heads, head_dim = x.shape
    B, C = (v.repeat_interleave(heads // v.shape[2], dim=2).to(dt.dtype) for v in (B, C))
    state = x.new_zeros(batch, heads, head_dim, B.shape[-1], dtype=dt.dtype)
    if initial_states is not None:
        state = state + initial_states
    states = []
    for t in range(tokens):
        step = dt[:, t, :, None, None]
        write = step * x[:, t, :, :, None].to(dt.dtype) * B[:, t, :, None, :]
        state = (step * A[:, None, None]).exp() * state + write
        states.append(state)
    held = torch.stack(states, dim=1)
    y = (held * C[:, :, :, None, :]).sum(dim=-1)
    if D is not None:
        y = y + x * D[:, None]
    return y, held, state
