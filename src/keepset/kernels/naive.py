"""Plain references, for reading and for tests: none of them is fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from keepset.kernels.weights import FfnWeights


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


def normalised(values: Tensor) -> Tensor:
    """Values (..., n_state) over their norm, as transformers takes it of queries and keys."""
    return values * torch.rsqrt(values.square().sum(dim=-1, keepdim=True) + 1e-6)


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
    of a group share B and C. With a decay for every channel it is Mamba-1's.

    Args:
        x: (batch, tokens, heads, head_dim).
        dt: (batch, tokens, heads) step sizes, as `time_steps` returns them.
        A: (heads,) negative, or (heads, n).
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
        state = (step * A.view(heads, 1, -1)).exp() * state + write
        states.append(state)
    held = torch.stack(states, dim=1)
    y = (held * C[:, :, :, None, :]).sum(dim=-1)
    if D is not None:
        y = y + x * D[:, None]
    return y, held, state


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = x.float() @ weight.float().t()
    return y if bias is None else y + bias.float()


def gate_values(x: Tensor, ffn: FfnWeights) -> Tensor:
    """act(x gate^T + gate_bias), (..., d) -> (..., n) float32; the layer must have a gate."""
    assert ffn.gate is not None
    return _ACTIVATIONS[ffn.act](_project(x, ffn.gate, ffn.gate_bias))


def hidden(x: Tensor, ffn: FfnWeights) -> Tensor:
    """What a dense FFN hands to its down projection, (..., d) -> (..., n) float32."""
    up = _project(x, ffn.up, ffn.up_bias)
    return _ACTIVATIONS[ffn.act](up) if ffn.gate is None else gate_values(x, ffn) * up


def down(h: Tensor, ffn: FfnWeights) -> Tensor:
    """h down_t + down_bias, (..., n) -> (..., d) float32."""
    y = h.float() @ ffn.down_t.float()
    return y if ffn.down_bias is None else y + ffn.down_bias.float()


def keep_above(score: Tensor, threshold: float) -> Tensor:
    """Mark the scores above a threshold. A NaN is kept, so that it is seen in the output."""
    return ~(score <= threshold)


def keep_best(score: Tensor, k: int) -> Tensor:
    """Mark the k largest of each row, ties to the lowest index: (..., n) -> (..., n) bool."""
    order = torch.argsort(score, dim=-1, descending=True, stable=True)[..., :k]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, order, True)


def sparse_ffn(
    x: Tensor,
    ffn: FfnWeights,
    *,
    threshold: float | None = None,
    k: int | None = None,
    choose: Literal["hidden", "gate"] = "hidden",
    norms: Tensor | None = None,
) -> Tensor:
    """A dense FFN whose h is zero wherever a row does not keep a neuron.

    Arguments as in `triton_ffn.sparse_decode`, with any number of rows; returns (..., d) float32.
    """
    h = hidden(x, ffn)
    score = (h if choose == "hidden" else gate_values(x, ffn)).abs()
    if norms is not None:
        score = score * norms.float()
    if threshold is not None:
        keep = keep_above(score, threshold)
    else:
        assert k is not None
        keep = keep_best(score, k)
    return down(h.where(keep, 0.0), ffn)


def sparse_gemv(
    x: Tensor,
    rows: Tensor,
    bias: Tensor | None = None,
    *,
    threshold: float | None = None,
    k: int | None = None,
    keep: Tensor | None = None,
    norms: Tensor | None = None,
    act: str | None = None,
    gated: bool = False,
) -> Tensor:
    """The kept inputs of each token times their rows, or all where no choice is given.

    Arguments as in `triton_gemv.sparse_gemv`, with any number of tokens; returns float32.
    """
    score = x.float().abs()
    if norms is not None:
        score = score * norms.float()
    if threshold is not None:
        keep = ~(score < threshold)
    elif k is not None:
        keep = keep_best(score, k)
    elif keep is not None and keep.ndim == 1:
        keep = torch.isin(torch.arange(len(rows), device=keep.device), keep)
    y = _project(x if keep is None else x.where(keep.bool(), 0.0), rows.t(), bias)
    if gated:
        gate, up = y.chunk(2, dim=-1)
        return _ACTIVATIONS[str(act)](gate) * up
    return y if act is None else _ACTIVATIONS[act](y)


def shared_set_ffn(x: Tensor, ffn: FfnWeights, keep: Tensor) -> Tensor:
    """The FFN of the neurons `keep` (k,) alone, for every row of x: (..., d) float32."""
    return down(hidden(x, ffn.take(keep)), ffn.take(keep))


def window_topk(h: Tensor, k: int, *, window: int = 1, norms: Tensor | None = None) -> Tensor:
    """The k units with the largest summed score in every window of tokens.

    Arguments and result as in `triton_topk.window_topk`; ties go to the lowest index.
    """
    factor = 1.0 if norms is None else norms.float()
    sums = torch.stack([part.float().abs().sum(dim=0) * factor for part in h.split(window)])
    order = torch.argsort(sums, dim=1, descending=True, stable=True)[:, :k]
    return order.sort(dim=1).values.int()


def state_step(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    z: Tensor | None = None,
    kept: Tensor | None = None,
    index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token of `scan`, with the state channels that are kept.

    Arguments as in `triton_state.state_step`, none of them expanded; `state` is not changed.

    Returns:
        The output (batch, heads, head_dim) and the new state, both float32. Channels of the state
        beyond a group's `kept` are as they were.
    """
    batch, heads, _, n = state.shape
    groups = B.shape[1]
    if index is not None:
        rows = index.long().clamp(0, B.shape[2] - 1).expand(batch, groups, n)
        B, C = B.gather(2, rows), C.gather(2, rows)
    B, C = (v[..., :n].float().repeat_interleave(heads // groups, dim=1) for v in (B, C))
    held = torch.ones(groups, n, dtype=torch.bool, device=state.device)
    if kept is not None:
        held = torch.arange(n, device=state.device) < kept[:, None]
    held = held.repeat_interleave(heads // groups, dim=0)[:, None, :]
    step = time_steps(dt, dt_bias, dt_softplus, dt_limit)
    new = torch.exp(step * A.float())[..., None, None] * state.float()
    new = new + (step[..., None] * x.float())[..., None] * B[:, :, None, :]
    read = new.where(held, 0.0) * C[:, :, None, :].where(held, 0.0)
    y = read.sum(dim=-1)
    if D is not None:
        y = y + x.float() * D.float()[:, None]
    if z is not None:
        y = y * F.silu(z.float())
    return y, new.where(held, state.float())
