"""The Mamba-2 scan and its convolution in plain torch, for the CPU and for gradients.

Equal to transformers' torch path up to rounding (Dao and Gu 2024, section 6: within a chunk as a
masked matrix product, between chunks as a recurrence of states), at about half the cost: B and C
are never repeated over the heads of a group, and the depthwise convolution is four shifted
products. The functions take the arguments of transformers' own, so that they can replace
them (`keepset.kernels.dispatch`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from keepset.kernels.naive import time_steps

CHUNK = 64


def chunk_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int = CHUNK,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **_: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """The scan of `keepset.kernels.naive.scan`, a chunk at a time.

    Args:
        hidden_states: (batch, tokens, heads, head_dim), x there.
        dt, dt_bias, dt_softplus, dt_limit: As in `keepset.kernels.naive.time_steps`.
        A, B, C, D, initial_states: As in `keepset.kernels.naive.scan`.
        chunk_size: The model's; chunks of `CHUNK` tokens are used instead.
        return_final_states: Whether the last state is wanted too.

    Returns:
        (batch, tokens, heads, head_dim), and the last state (batch, heads, head_dim, n).
    """
    del chunk_size
    batch, tokens, heads, head_dim = hidden_states.shape
    groups, n = B.shape[2:]
    step = time_steps(dt, dt_bias, dt_softplus, dt_limit)
    # Rows of heads that share a group lie together, so that one matrix product serves them all.
    x = _chunked(hidden_states * step[..., None].to(hidden_states.dtype), tokens).transpose(2, 3)
    decay = _chunked(A * step, tokens).transpose(2, 3).cumsum(dim=-1)
    write, read = (_chunked(v, tokens).transpose(2, 3) for v in (B, C))
    chunks, width = decay.shape[1], decay.shape[-1]
    grouped = (batch, chunks, groups, heads // groups)

    within = (read @ write.transpose(-1, -2))[:, :, :, None] * _kernel(decay).view(
        *grouped, width, width
    )
    y = within.view(batch, chunks, heads, width, width).to(x.dtype) @ x

    last = decay[..., -1:]
    faded = x * (last - decay).exp()[..., None].to(x.dtype)
    faded = faded.view(*grouped, width, head_dim).transpose(3, 4)
    faded = faded.reshape(batch, chunks, groups, width, -1).transpose(-1, -2)
    gained = (faded @ write).view(batch, chunks, heads, head_dim, n)
    before, state = _between(gained, last.exp()[..., None], initial_states)
    before = before.view(batch, chunks, groups, -1, n).transpose(-1, -2)
    carried = (read @ before.to(read.dtype)).view(batch, chunks, groups, width, -1, head_dim)
    carried = carried.transpose(3, 4).reshape(batch, chunks, heads, width, head_dim)
    y = y + carried * decay.exp()[..., None]

    y = y.transpose(2, 3).reshape(batch, chunks * width, heads, head_dim)[:, :tokens]
    if D is not None:
        y = y + hidden_states * D[:, None]
    # Some families view the result, which follows the layout of what was added to it.
    y = y.contiguous()
    return (y, state) if return_final_states else y


def _chunked(values: Tensor, tokens: int) -> Tensor:
    """(batch, tokens, ...) -> (batch, chunks, CHUNK, ...), zeros at the end."""
    if pad := -tokens % CHUNK:
        values = F.pad(values, (0, 0) * (values.ndim - 2) + (0, pad))
    return values.view(values.shape[0], -1, CHUNK, *values.shape[2:])


def _kernel(decay: Tensor) -> Tensor:
    """What is left at token l of what was written at token s <= l: (..., l) -> (..., l, s)."""
    width = decay.shape[-1]
    later = torch.ones(width, width, dtype=torch.bool, device=decay.device).triu(1)
    difference = decay[..., :, None] - decay[..., None, :]
    return difference.masked_fill(later, -torch.inf).exp()


def _between(gained: Tensor, decay: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
    """The state before each chunk, and the last one."""
    state = torch.zeros_like(gained[:, 0], dtype=decay.dtype) if first is None else first
    before = []
    for chunk in range(gained.shape[1]):
        before.append(state)
        state = state * decay[:, chunk] + gained[:, chunk]
    return torch.stack(before, dim=1), state


def causal_conv(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    **_: Any,
) -> Tensor:
    """Depthwise causal convolution.

    Args:
        hidden_states: (batch, channels, tokens).
        weight: (channels, width).
        bias: (channels,).
        activation: None, "silu" or "swish".

    Returns:
        (batch, channels, tokens), the dtype of `hidden_states`.

    Raises:
        ValueError: another activation.
    """
    x, tokens, width = hidden_states.transpose(1, 2), hidden_states.shape[2], weight.shape[1]
    taps = weight.to(x.dtype)
    x = F.pad(x, (0, 0, width - 1, 0))
    y = x[:, width - 1 :] * taps[:, width - 1]
    for tap in range(width - 1):
        y = torch.addcmul(y, x[:, tap : tap + tokens], taps[:, tap])
    if bias is not None:
        y = y + bias.to(y.dtype)
    return activated(y, activation).transpose(1, 2)


def activated(y: Tensor, activation: str | None) -> Tensor:
    """What follows a convolution: nothing, or SiLU.

    Raises:
        ValueError: another activation.
    """
    if activation in ("silu", "swish"):
        return F.silu(y)
    if activation is not None:
        raise ValueError(f"activation must be None, 'silu' or 'swish', got {activation!r}")
    return y
