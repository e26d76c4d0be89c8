"""Products with the kept inputs alone: 1 to 16 tokens times weights that lie input by input.

    sparse_gemv(x, rows, bias, threshold=t)           inputs whose score is at least t, per token
    sparse_gemv(x, rows, bias, k=k)                   the k best of each token, exactly
    sparse_gemv(x, rows, bias, keep=keep)             sets that are known
    sparse_gemv(x, rows, act="silu", gated=True, ...)  act(gate) * up, the two side by side in rows

Row j of `rows` is what input j adds to all outputs of all linear maps that read x: query, key and
value side by side, or gate and up, or one map. So one function serves every linear map of a decoder
layer. A row that no token keeps is not read: the loads of a block of rows are masked row by row, in
the manner of TEAL's kernel (arXiv:2408.14690). Theirs adds up with atomic additions of
floats; here each share of the inputs writes its sums, and the share that finishes last adds them in
a fixed order, so equal inputs give equal bits.

Nothing waits for the device and sizes depend on shapes alone, so calls can be captured in a CUDA
graph.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from keepset.kernels.launch import (
    cdiv,
    check,
    check_matrix,
    check_vector,
    launch,
    power_of_two,
    rows_of,
    workspace,
)
from keepset.kernels.triton_device import activate, chosen
from keepset.kernels.triton_topk import top_marks
from keepset.kernels.weights import ACTIVATIONS, MAX_ROWS

# isort: split
import torch
import triton
import triton.language as tl

PROGRAMS = 528
"""Four per multiprocessor of an H100: enough loads in flight to fill its memory bandwidth."""

_LEAST_OUTS = 16


@dataclass(frozen=True)
class GemvConfig:
    """Block sizes, powers of two; `gemv_config` chooses them from the shape.

    Args:
        block_in: Inputs per step; at least 16 with more than one token.
        block_out: Outputs per program, at least 16.
        shares: Into how many shares the inputs are cut.
        warps: Of a program.
        stages: Loads in flight.
    """

    block_in: int
    block_out: int
    shares: int
    warps: int = 4
    stages: int = 3


def gemv_config(n_rows: int, n_in: int, n_out: int) -> GemvConfig:
    """Block sizes for `n_rows` tokens. Estimates: not tuned on a device."""
    block_out = min(max(power_of_two(n_out), _LEAST_OUTS), 64)
    block_in = 64 if n_rows == 1 else 32
    shares = min(PROGRAMS // cdiv(n_out, block_out), cdiv(n_in, block_in), 16)
    return GemvConfig(block_in, block_out, max(shares, 1))


@triton.jit
def _plus(acc, v, w, BLOCK_B: tl.constexpr):
    """Add v (inputs, tokens) times w (inputs, outputs) to the sums.

    One token uses each weight once: products on CUDA cores, added up over inputs at the end. With
    more tokens tensor cores keep the arithmetic from becoming the limit.
    """
    if BLOCK_B == 1:
        acc += v.to(tl.float32) * w.to(tl.float32)
    else:
        acc = tl.dot(tl.trans(v), w, acc, input_precision="ieee")
    return acc


@triton.jit
def _shares_added(partial, offsets, written, size, SHARES: tl.constexpr):
    """The sum over shares, in their order."""
    y = tl.zeros(offsets.shape, dtype=tl.float32)
    for s in tl.static_range(SHARES):
        # .cg: from the L2 cache, where the other programs' sums are.
        y += tl.load(partial + s * size + offsets, mask=written, other=0.0, cache_modifier=".cg")
    return y


@triton.jit
def _finished(y, bias, c, inside, BIAS: tl.constexpr, ACT: tl.constexpr):
    if BIAS:
        y += tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    if ACT is not None:
        y = activate(y, ACT)
    return y


@triton.jit
def _stored(
    acc, acc_up, partial, arrivals, bias, out, block, share, c, b, n_rows, n_out,
    BIAS: tl.constexpr, ACT: tl.constexpr, GATED: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """Store the sums of a share (tokens, outs); the share that comes last adds all of them up."""
    inside = c < n_out
    outs = n_out * 2 if GATED else n_out
    offsets = b[:, None] * outs + c[None, :]
    written = (b < n_rows)[:, None] & inside[None, :]
    last = True
    if SHARES > 1:
        sums = partial + share * n_rows * outs + offsets
        tl.store(sums, acc, mask=written)
        if GATED:
            tl.store(sums + n_out, acc_up, mask=written)
        # Every thread's sums must be in memory before the ticket says so.
        tl.debug_barrier()
        last = tl.atomic_add(arrivals + block, 1, sem="acq_rel", scope="gpu") == SHARES - 1
    if last:
        if SHARES > 1:
            acc = _shares_added(partial, offsets, written, n_rows * outs, SHARES)
            if GATED:
                acc_up = _shares_added(partial, offsets + n_out, written, n_rows * outs, SHARES)
            # All have arrived: the counter is ready for the next launch.
            tl.store(arrivals + block, 0)
        y = _finished(acc, bias, c, inside, BIAS, ACT)
        if GATED:
            y *= _finished(acc_up, bias, c + n_out, inside, BIAS, None)
        places = out + b[:, None] * n_out + c[None, :]
        tl.store(places, y.to(out.dtype.element_ty), mask=written)


@triton.jit
def _gemv(
    x, rows, bias, norms, keep, index, threshold, partial, arrivals, out,
    n_rows, n_in, n_out, x_row, w_row,
    CHOICE: tl.constexpr, INDEXED: tl.constexpr, NORMS: tl.constexpr, BIAS: tl.constexpr,
    ACT: tl.constexpr, GATED: tl.constexpr, SHARES: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Add up the kept rows for one block of outputs and one share of the inputs."""
    block = tl.program_id(0)
    share = tl.program_id(1)
    c = block * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    b = tl.arange(0, BLOCK_B)
    inside = c < n_out
    size = tl.cdiv(tl.cdiv(n_in, SHARES), BLOCK_IN) * BLOCK_IN
    stop = tl.minimum(share * size + size, n_in)
    acc = tl.zeros((BLOCK_IN if BLOCK_B == 1 else BLOCK_B, BLOCK_OUT), dtype=tl.float32)
    acc_up = acc
    for start in tl.range(share * size, stop, BLOCK_IN, num_stages=STAGES):
        place = start + tl.arange(0, BLOCK_IN)
        wanted = place < stop
        j = place
        if INDEXED:
            j = tl.load(index + place, mask=wanted, other=0)
        j = j.to(tl.int64)
        live = wanted[:, None] & (b < n_rows)[None, :]
        v = tl.load(x + b[None, :] * x_row + j[:, None], mask=live, other=0.0)
        if CHOICE != "all":
            kept = chosen(v, keep, norms, threshold, j, b, wanted, live, n_in, CHOICE, NORMS)
            v = tl.where(kept, v, 0.0)
            wanted = tl.max(kept.to(tl.int32), axis=1) > 0
        read = wanted[:, None] & inside[None, :]
        pointers = rows + j[:, None] * w_row + c[None, :]
        acc = _plus(acc, v, tl.load(pointers, mask=read, other=0.0), BLOCK_B)
        if GATED:
            acc_up = _plus(acc_up, v, tl.load(pointers + n_out, mask=read, other=0.0), BLOCK_B)
    if BLOCK_B == 1:
        acc = tl.sum(acc, axis=0)[None, :]
        acc_up = tl.sum(acc_up, axis=0)[None, :]

    _stored(acc, acc_up, partial, arrivals, bias, out, block, share, c, b, n_rows, n_out,
            BIAS, ACT, GATED, SHARES)  # fmt: skip


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
    arrivals: Tensor | None = None,
    config: GemvConfig | None = None,
) -> Tensor:
    """Multiply the kept inputs of each token by their rows of the weights.

    An input's score is |x_j|, or |x_j| norms_j. Without threshold, k and keep every input is kept.

    Args:
        x: (..., n_in), 0 to 16 tokens; float32, float16 or bfloat16, the dtype of the weights. More
            tokens only where all keep the same inputs.
        rows: (n_in, outs), the weights of one or more linear maps, side by side and transposed.
        bias: (outs,).
        threshold: Keep scores of at least this, compared in float32. A NaN is kept, so that it is
            seen in the output.
        k: Or keep the k largest of each token, ties to the lowest index; one more launch.
        keep: Or the sets themselves: (tokens, n_in) bool or int8, or (k,) int32 or int64 indices
            that all tokens keep. Indices are looked at on the CPU only: elsewhere that would wait
            for the device.
        norms: (n_in,) the norm of each input's weights, as the scores `impact` and WINA's
            (arXiv:2505.19427) have it; with threshold or k.
        act: One of `ACTIVATIONS`, applied to the output; of a gated block to the gate alone.
        gated: Whether rows are a gate's outputs and then as many of an up projection's; the
            result is act(gate) * up.
        arrivals: Counters from `new_arrivals`, which save a launch. They are zero again afterwards;
            calls that share them must follow each other on one stream.
        config: Block sizes instead of `gemv_config`'s.

    Returns:
        (..., outs), or (..., outs / 2) of a gated block, the dtype of x.

    Raises:
        KernelError: more than one choice, too many tokens, or tensors that do not fit.
    """
    check(rows.ndim == 2, f"rows must be (n_in, outs), got {tuple(rows.shape)}")
    n_in, outs = rows.shape
    flat = rows_of(x, n_in)
    _check_choice(flat, n_in, threshold, k, keep, norms)
    check_matrix("rows", rows, (n_in, outs), flat)
    check_vector("bias", bias, outs, flat)
    check(act is None or act in ACTIVATIONS, f"unknown activation {act!r}")
    check(not gated or (act is not None and outs % 2 == 0), "a gated block needs an activation, and"
          f" as many outputs of the gate as of up; got {act!r} and {outs}")  # fmt: skip
    n_out = outs // 2 if gated else outs
    y = workspace((len(flat), n_out), x.dtype, x)
    if n_out:
        index = keep if keep is not None and keep.ndim == 1 else None
        for part, out in zip(flat.split(MAX_ROWS), y.split(MAX_ROWS), strict=True):
            if not len(part):
                continue
            marks = top_marks(part, k, norms=norms) if k is not None else keep
            blocks = config or gemv_config(len(part), n_in if index is None else len(index), n_out)
            _launch(part, rows, bias, threshold, None if index is not None else marks, index,
                    norms if k is None else None, act, gated, arrivals, out, blocks)  # fmt: skip
    return y.view(*x.shape[:-1], n_out)


def new_arrivals(rows: Tensor) -> Tensor:
    """Counters for calls of `sparse_gemv` with these weights, whatever the block sizes: zeros."""
    return torch.zeros(cdiv(rows.shape[1], _LEAST_OUTS), dtype=torch.int32, device=rows.device)


def _launch(
    x: Tensor, rows: Tensor, bias: Tensor | None, threshold: float | None, marks: Tensor | None,
    index: Tensor | None, norms: Tensor | None, act: str | None, gated: bool,
    arrivals: Tensor | None, out: Tensor, config: GemvConfig,
) -> None:  # fmt: skip
    n_rows, n_out = out.shape
    blocks = cdiv(n_out, config.block_out)
    if config.shares == 1:
        arrivals = None
    elif arrivals is None:
        arrivals = torch.zeros(blocks, dtype=torch.int32, device=x.device)
    else:
        fits = arrivals.dtype == torch.int32 and arrivals.device == x.device
        check(fits and len(arrivals) >= blocks, "arrivals must come from new_arrivals(rows)")
    partial = None
    if config.shares > 1:
        partial = workspace((config.shares, n_rows, rows.shape[1]), torch.float32, x)
    choice = "all" if threshold is None and marks is None else "threshold"
    launch(
        _gemv, (blocks, config.shares),
        x, rows, bias, norms, None if marks is None else marks.contiguous().view(torch.int8), index,
        0.0 if threshold is None else float(threshold), partial, arrivals, out,
        n_rows, x.shape[1] if index is None else len(index), n_out, x.stride(0), rows.stride(0),
        CHOICE="marks" if marks is not None else choice, INDEXED=index is not None,
        NORMS=norms is not None, BIAS=bias is not None, ACT=act, GATED=gated,
        SHARES=config.shares, BLOCK_B=1 if n_rows == 1 else MAX_ROWS, BLOCK_IN=config.block_in,
        BLOCK_OUT=config.block_out, STAGES=config.stages,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip


def _check_choice(
    x: Tensor, n_in: int, threshold: float | None, k: int | None, keep: Tensor | None,
    norms: Tensor | None,
) -> None:  # fmt: skip
    given = sum(value is not None for value in (threshold, k, keep))
    check(given <= 1, "give one of threshold, k and keep")
    check(norms is None or (given == 1 and keep is None), "norms go with threshold or k")
    check_vector("norms", norms, n_in, x)
    shared = given == 0 or (keep is not None and keep.ndim == 1)
    check(
        shared or len(x) <= MAX_ROWS,
        f"{len(x)} rows: at most {MAX_ROWS} with sets of their own; run more dense or masked",
    )
    if keep is None:
        return
    if keep.ndim == 1:
        check_keep(keep, n_in, x)
        return
    check(keep.dtype in (torch.bool, torch.int8), f"keep is {keep.dtype}, expected bool or int8")
    shapes = tuple(keep.shape), tuple(x.shape)
    check(shapes[0] == shapes[1], "keep is {}, x {}".format(*shapes))
    check(keep.device == x.device, f"keep is on {keep.device}, x on {x.device}")


def check_keep(keep: Tensor, n: int, x: Tensor) -> None:
    """Check a keep set of indices.

    Raises:
        KernelError: it is a mask, lies elsewhere, or (on the CPU) points outside the layer.
    """
    check(
        keep.ndim == 1 and keep.dtype in (torch.int32, torch.int64),
        f"keep must be (k,) int32 or int64 indices, got {tuple(keep.shape)} {keep.dtype};"
        " turn a mask into indices once, with mask.nonzero()[:, 0]",
    )
    check(keep.device == x.device, f"keep is on {keep.device}, x on {x.device}")
    check(keep.is_contiguous(), "keep is not contiguous: use .contiguous()")
    if keep.device.type == "cpu" and keep.numel():
        check(int(keep.min()) >= 0 and int(keep.max()) < n, f"keep has an index outside 0..{n - 1}")
