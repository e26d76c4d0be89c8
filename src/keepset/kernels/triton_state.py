"""One token through the recurrent state of a Mamba-2 layer, with the state channels that are kept.

    y = state_step(state, x, dt, A, B, C, D=..., dt_bias=..., dt_softplus=True)

The state is updated in place and read out in the same pass: each of its kept numbers is read once
and written once, which is all the traffic that matters. Any number of channels works, and not only
powers of two: channels are visited in steps of a few, and a masked one moves no bytes. With `kept`
each group of a layer may hold a different number; with `index` B and C may hold all channels, and
each group picks its own from them.

Two layouts, one kernel: (batch, heads, head_dim, n) in memory, as mamba-ssm and transformers keep
it, or the same shape as a view of (batch, heads, n, head_dim), which `new_state` makes. In the
second a kept channel is one run of memory whatever n is: prefer it where groups differ.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from keepset.kernels.launch import DTYPES, cdiv, check, launch, power_of_two, workspace

# isort: split
import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class StateConfig:
    """Block sizes: powers of two.

    Args:
        channels: State channels per step.
        dims: Head dimensions per program.
        warps: Of the kernel.
    """

    channels: int
    dims: int
    warps: int = 4


def state_config(n: int, head_dim: int, batch_heads: int) -> StateConfig:
    """Block sizes for n channels. Estimates: not tuned on a device."""
    # Few sequences: cut the heads smaller, so that every multiprocessor has work.
    dims = power_of_two(head_dim)
    while dims > 8 and batch_heads * cdiv(head_dim, dims) < 264:
        dims //= 2
    # A step as narrow as n needs, so that a masked lane is rare: 38 channels take 3 steps of 16.
    channels = min(power_of_two(n), 64 if n % 64 == 0 else 32 if n % 32 == 0 else 16)
    return StateConfig(channels, dims)


@triton.jit
def _state_step(
    state, x, dt, A, B, C, D, dt_bias, z, kept, index, out,
    heads, head_dim, n, heads_per_group, b_channels, dt_min, dt_max,
    s_batch, s_head, s_dim, s_chan, x_batch, x_head, dt_batch, dt_head,
    b_batch, b_group, c_batch, c_group, z_batch, z_head,
    SKIP: tl.constexpr, DT_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, GATED: tl.constexpr,
    KEPT: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    group = head // heads_per_group
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = p < head_dim
    v = tl.load(x + batch * x_batch + head * x_head + p, mask=inside, other=0.0).to(tl.float32)

    step = tl.load(dt + batch * dt_batch + head * dt_head).to(tl.float32)
    if DT_BIAS:
        step += tl.load(dt_bias + head).to(tl.float32)
    if SOFTPLUS:
        # log(1 + e) without losing a small e: the rounding of 1 + e is divided out again.
        e = tl.exp(tl.minimum(step, 20.0))
        w = 1.0 + e
        near = tl.where(w == 1.0, e, tl.log(w) * e / tl.where(w == 1.0, 1.0, w - 1.0))
        step = tl.where(step > 20.0, step, near)
    step = tl.minimum(tl.maximum(step, dt_min), dt_max)
    decay = tl.exp(step * tl.load(A + head).to(tl.float32))
    written = (step * v)[:, None]

    channels = n
    if KEPT:
        channels = tl.minimum(tl.load(kept + group), n)
    rows = state + batch * s_batch + head * s_head + p[:, None] * s_dim
    y = tl.zeros((BLOCK_P, BLOCK_N), dtype=tl.float32)
    for start in range(0, channels, BLOCK_N):
        c = start + tl.arange(0, BLOCK_N)
        live = c < channels
        where = c
        if INDEX:
            where = tl.load(index + group * n + c, mask=live, other=0)
            # A wrong index must not read another group's numbers.
            live = live & (where >= 0) & (where < b_channels)
        b = tl.load(B + batch * b_batch + group * b_group + where, mask=live, other=0.0)
        r = tl.load(C + batch * c_batch + group * c_group + where, mask=live, other=0.0)
        mask = inside[:, None] & live[None, :]
        pointers = rows + c[None, :] * s_chan
        h = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
        h = h * decay + written * b.to(tl.float32)[None, :]
        y += h * r.to(tl.float32)[None, :]
        tl.store(pointers, h.to(state.dtype.element_ty), mask=mask)
    total = tl.sum(y, axis=1)
    if SKIP:
        total += v * tl.load(D + head).to(tl.float32)
    if GATED:
        g = tl.load(z + batch * z_batch + head * z_head + p, mask=inside, other=0.0)
        g = g.to(tl.float32)
        total *= g / (1.0 + tl.exp(-g))
    pointers = out + (batch * heads + head) * head_dim + p
    tl.store(pointers, total.to(out.dtype.element_ty), mask=inside)


def new_state(
    batch: int, heads: int, head_dim: int, n: int, *,
    dtype: torch.dtype = torch.float32, device: torch.device | str | None = None,
) -> Tensor:  # fmt: skip
    """A state of zeros, (batch, heads, head_dim, n), each channel one run of memory."""
    memory = torch.zeros(batch, heads, n, head_dim, dtype=dtype, device=device)
    return memory.transpose(2, 3)


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
    config: StateConfig | None = None,
) -> Tensor:
    """Update the state in place and read it out (`keepset.kernels.naive.state_step`).

    Per-head vectors may also be expanded to the head's dimensions and channels, as transformers
    and mamba-ssm hand them over: views whose further strides are 0.

    Args:
        state: (batch, heads, head_dim, n), float32, float16 or bfloat16; the arithmetic is
            float32 in any case.
        x: (batch, heads, head_dim).
        dt: (batch, heads), or expanded to (batch, heads, head_dim).
        A: (heads,) negative, or expanded to (heads, head_dim, n).
        B: (batch, groups, n); (batch, groups, all channels) with `index`.
        C: Likewise.
        D: (heads,), or expanded to (heads, head_dim).
        dt_bias: (heads,), or expanded to (heads, head_dim).
        dt_softplus: Whether dt goes through softplus.
        dt_limit: Smallest and largest step.
        z: (batch, heads, head_dim); the output is multiplied by silu(z).
        kept: (groups,) int32, how many channels each group holds, at most n. The state's other
            channels are neither read nor written.
        index: (groups, n) int32, which channels of B and C they are.
        config: Block sizes instead of `state_config`'s.

    Returns:
        (batch, heads, head_dim), the dtype of x.

    Raises:
        KernelError: tensors that do not fit.
    """
    check(state.ndim == 4, f"state must be (batch, heads, head_dim, n), got {tuple(state.shape)}")
    batch, heads, head_dim, n = state.shape
    groups = B.shape[1] if B.ndim == 3 else 0
    channels = B.shape[-1] if index is not None else n
    check(groups > 0 and heads % groups == 0, f"{heads} heads cannot share {groups} groups")
    for name, tensor in {"x": x, "z": z}.items():
        _check_rows(name, tensor, (batch, heads, head_dim), state)
    for name, tensor in {"B": B, "C": C}.items():
        _check_rows(name, tensor, (batch, groups, channels), state)
    A, D, dt_bias = (_per_head(*pair, (heads,), state) for pair in
                     (("A", A), ("D", D), ("dt_bias", dt_bias)))  # fmt: skip
    dt = _per_head("dt", dt, (batch, heads), state)
    for name, tensor, shape in (("kept", kept, (groups,)), ("index", index, (groups, n))):
        _check_whole(name, tensor, shape, state)
    check(state.dtype in DTYPES, f"state is {state.dtype}; use float32, float16 or bfloat16")
    y = workspace((batch, heads, head_dim), x.dtype, x)
    if y.numel():
        config = config or state_config(n, head_dim, batch * heads)
        z_strides = (0, 0) if z is None else z.stride()[:2]
        launch(
            _state_step, (batch * heads, cdiv(head_dim, config.dims)),
            state, x, dt, A, B, C, D, dt_bias, z, kept, index, y,
            heads, head_dim, n, heads // groups, channels, float(dt_limit[0]), float(dt_limit[1]),
            *state.stride(), *x.stride()[:2], *dt.stride(), *B.stride()[:2], *C.stride()[:2],
            *z_strides,
            SKIP=D is not None, DT_BIAS=dt_bias is not None, SOFTPLUS=dt_softplus,
            GATED=z is not None, KEPT=kept is not None, INDEX=index is not None,
            BLOCK_P=config.dims, BLOCK_N=config.channels, num_warps=config.warps,
        )  # fmt: skip
    return y


def _check_rows(name: str, tensor: Tensor | None, shape: tuple[int, ...], state: Tensor) -> None:
    if tensor is None:
        return
    check(tuple(tensor.shape) == shape, f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    check(tensor.dtype in DTYPES, f"{name} is {tensor.dtype}; use float32, float16 or bfloat16")
    check(tensor.device == state.device, f"{name} is on {tensor.device}, state on {state.device}")
    check(
        shape[-1] <= 1 or tensor.stride(-1) == 1,
        f"{name} is not contiguous in its last dimension: use .contiguous()",
    )


def _per_head(name: str, tensor: Tensor | None, shape: tuple[int, ...], state: Tensor) -> Tensor:
    """The tensor without the dimensions that it was only expanded to."""
    if tensor is None:
        return None  # type: ignore[return-value]
    while tensor.ndim > len(shape):
        check(
            tensor.shape[-1] == 1 or tensor.stride(-1) == 0,
            f"{name} differs within a head ({tuple(tensor.shape)}): Mamba-2 has one per head",
        )
        tensor = tensor[..., 0]
    _check_rows(name, tensor[..., None], (*shape, 1), state)
    # dt may be a slice of a larger projection; vectors of the parameters lie together already.
    return tensor if len(shape) == 2 else tensor.contiguous()


def _check_whole(name: str, tensor: Tensor | None, shape: tuple[int, ...], state: Tensor) -> None:
    if tensor is not None:
        check(
            tuple(tensor.shape) == shape and tensor.dtype == torch.int32,
            f"{name} must be {shape} int32, got {tuple(tensor.shape)} {tensor.dtype}",
        )
        check(tensor.is_contiguous(), f"{name} is not contiguous: use .contiguous()")
        check(tensor.device == state.device, f"{name} is on {tensor.device}, not {state.device}")
