"""The feed-forward layer at decode: 1 to 16 tokens, kept neurons only.

    sparse_decode(x, ffn, threshold=t)           keep a neuron where its score exceeds t
    sparse_decode(x, ffn, k=k)                   keep the k best of each row, exactly
    shared_set_decode(x, ffn, keep)              one known keep set for all rows
    sparse_down(h, kept, down_t, bias)           the down projection alone, of h that is there

`ffn` is `keepset.kernels.weights.FfnWeights`; x is (..., d) with at most `MAX_ROWS` rows. More
rows go to `keepset.kernels.triton_prefill`. Nothing waits for the device and every workspace has
a size that the shapes alone decide, so the calls can be captured in a CUDA graph.

Equal inputs give equal bits. docs/KERNELS.md, "Layout" and "Decode", says how the kernels work
together, and what each rule saves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from keepset.kernels.launch import (
    cdiv,
    check,
    check_ffn,
    check_matrix,
    check_vector,
    launch,
    power_of_two,
    rows_of,
    workspace,
)
from keepset.kernels.triton_decode import compact_kept, row_keep, rows_down, rows_up, up_compact
from keepset.kernels.triton_topk import MAX_UNITS
from keepset.kernels.weights import MAX_ROWS, FfnWeights


@dataclass(frozen=True)
class DecodeConfig:
    """Block sizes; `decode_config` chooses them from the shape.

    Args:
        tile: Neurons per program of the dense projection, a power of two.
        block_in: Inputs per step of a projection.
        block_list: Kept neurons per step over the list; at least 16 with more than one row.
        block_out: Outputs per program of the down projection.
        shares: Into how many shares the list is cut for the down projection.
        programs: Programs of the up projection of kept rows.
        warps: Of every kernel.
        stages: Loads in flight.
    """

    tile: int
    block_in: int
    block_list: int
    block_out: int
    shares: int
    programs: int
    warps: int = 4
    stages: int = 3


PROGRAMS = 264
"""Two per multiprocessor of an H100: enough loads in flight to fill its memory bandwidth."""


def decode_config(rows: int, n: int, d: int) -> DecodeConfig:
    """Block sizes for `rows` tokens, n neurons and d inputs. Estimates: not tuned on a device."""
    # The search for slots compares with every tile, so there are at most 256 of them.
    tile = max(32, power_of_two(cdiv(n, 256)))
    block_in = min(power_of_two(d), 128 if rows == 1 else 64)
    block_out = min(power_of_two(d), 64)
    shares = min(max(PROGRAMS // cdiv(d, block_out), 1), 8)
    block_list = 16
    programs = min(PROGRAMS, cdiv(n, block_list))
    return DecodeConfig(tile, max(block_in, 16), block_list, max(block_out, 16), shares, programs)


@dataclass(frozen=True)
class _List:
    """Kept neurons on the device: tiles of slots with counts, or n_kept slots in a row."""

    value: Tensor
    index: Tensor
    count: Tensor | None
    arrivals: Tensor
    n_tiles: int = 0
    n_kept: int = 0


def sparse_decode(
    x: Tensor,
    ffn: FfnWeights,
    *,
    threshold: float | None = None,
    k: int | None = None,
    choose: Literal["hidden", "gate"] = "hidden",
    norms: Tensor | None = None,
    config: DecodeConfig | None = None,
) -> Tensor:
    """Run the FFN with the down projection (and, by the gate, the up projection) sparse.

    A neuron's score in a row is |h|, or |act(gate)| with choose="gate", times its norm if given.

    Args:
        x: (..., d), 0 to 16 rows; float32, float16 or bfloat16, the dtype of the weights.
        ffn: The layer's weights on the device of x.
        threshold: Keep scores above it; 0 is exact for ReLU.
        k: Or keep the k largest of each row, ties to the lowest index; two more launches.
        choose: What is scored, where the layer has a gate: h itself, as the study's rules do, or
            act(gate), before up is computed; that is another rule with other results.
        norms: (n,) ||w_j||_2, for the score `impact`.
        config: Block sizes instead of `decode_config`'s.

    Returns:
        (..., d), the dtype of x.

    Raises:
        KernelError: neither or both of threshold and k, too many rows, or tensors that do not fit.
    """
    check((threshold is None) != (k is None), "give either threshold or k")
    check(choose in ("hidden", "gate"), f"choose must be 'hidden' or 'gate', got {choose!r}")
    check(choose == "hidden" or ffn.gate is not None, "choose='gate' needs a layer with a gate")
    check(k is None or 0 <= k <= ffn.n, f"cannot keep {k} of {ffn.n} neurons")
    check(k is None or ffn.n <= MAX_UNITS, f"{ffn.n} neurons: top-k takes at most {MAX_UNITS}")
    check_vector("norms", norms, ffn.n, x)
    rows, y, config = _prepared(x, ffn, config)
    if rows.shape[0]:
        kept = _compacted(
            rows, ffn, -1.0 if threshold is None else threshold, choose, norms, config
        )
        if k is not None:
            kept = _best(kept, ffn.n, k, norms, config)
        if choose == "gate":
            _up(rows, ffn, kept, "multiply", config)
        _down(rows, ffn.down_t, ffn.down_bias, kept, y, config)
    return y.view(x.shape)


def shared_set_decode(
    x: Tensor,
    ffn: FfnWeights,
    keep: Tensor,
    *,
    config: DecodeConfig | None = None,
) -> Tensor:
    """Run the FFN with one known keep set: up, gate and down read kept rows only.

    Args:
        x: (..., d), 0 to 16 rows.
        ffn: The layer's weights on the device of x.
        keep: (k,) int32 or int64 indices below n, each once; ascending reads fastest. Only on
            the CPU are they looked at: elsewhere that would wait for the device.
        config: Block sizes instead of `decode_config`'s.

    Returns:
        (..., d), the dtype of x.

    Raises:
        KernelError: too many rows, or tensors that do not fit.
    """
    check_keep(keep, ffn.n, x)
    rows, y, config = _prepared(x, ffn, config)
    if rows.shape[0]:
        n_kept = keep.shape[0]
        kept = _List(
            workspace((rows.shape[0], n_kept), x.dtype, x),
            keep, None, _arrivals(rows, ffn, config), n_kept=n_kept,
        )  # fmt: skip
        _up(rows, ffn, kept, "plain" if ffn.gate is None else "gated", config)
        _down(rows, ffn.down_t, ffn.down_bias, kept, y, config)
    return y.view(x.shape)


def sparse_down(
    h: Tensor,
    kept: Tensor,
    down_t: Tensor,
    bias: Tensor | None = None,
    *,
    config: DecodeConfig | None = None,
) -> Tensor:
    """The down projection of kept neurons, where h is there already.

    Args:
        h: (rows, n), 0 to 16 rows; more only with a shared set.
        kept: (rows, n) bool, each row's own set, or (k,) int32 or int64 indices that all keep.
        down_t: (n, d), the dtype of h.
        bias: (d,).
        config: Block sizes instead of `decode_config`'s.

    Returns:
        (rows, d), the dtype of h: the sum over kept j of h_j down_t[j], plus the bias.

    Raises:
        KernelError: too many rows, or tensors that do not fit.
    """
    check(down_t.ndim == 2, f"down_t must be (n, d), got {tuple(down_t.shape)}")
    n, d = down_t.shape
    rows = rows_of(h, n)
    check_matrix("down_t", down_t, (n, d), rows)
    check_vector("bias", bias, d, rows)
    y = workspace((len(rows), d), h.dtype, h)
    if kept.dtype != torch.bool:
        check_keep(kept, n, rows)
        for part, out in zip(rows.split(MAX_ROWS), y.split(MAX_ROWS), strict=True):
            blocks = config or decode_config(len(part), n, d)
            value = part.index_select(1, kept)
            kept_list = _List(value, kept, None, _cleared(d, blocks, part), n_kept=len(kept))
            _down(part, down_t, bias, kept_list, out, blocks)
        return y
    shapes = tuple(kept.shape), tuple(rows.shape)
    check(shapes[0] == shapes[1], "kept is {}, h {}".format(*shapes))
    check(len(rows) <= MAX_ROWS, f"{len(rows)} rows: at most {MAX_ROWS} with sets of their own")
    if len(rows):
        config = config or decode_config(len(rows), n, d)
        marks = kept.contiguous().view(torch.int8)
        kept_list = _marked(rows, marks, _cleared(d, config, rows), config)
        _down(rows, down_t, bias, kept_list, y, config)
    return y


def _marked(value: Tensor, keep: Tensor, arrivals: Tensor, config: DecodeConfig) -> _List:
    """The list of the neurons that `keep` (rows, n) int8 marks; `value` (rows, >= n) is h."""
    rows, n = keep.shape
    kept = _new_list(value, n, arrivals, config)
    launch(
        compact_kept, (kept.n_tiles,),
        value, keep, kept.value, kept.index, kept.count,
        rows, n, value.stride(0), kept.value.stride(0),
        TILE=config.tile, BLOCK_B=_block_rows(value), num_warps=config.warps,
    )  # fmt: skip
    return kept


def _cleared(d: int, config: DecodeConfig, like: Tensor) -> Tensor:
    """Counters of arrivals at zero, where no earlier launch clears them."""
    return torch.zeros(cdiv(d, config.block_out), dtype=torch.int32, device=like.device)


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


def _prepared(
    x: Tensor, ffn: FfnWeights, config: DecodeConfig | None
) -> tuple[Tensor, Tensor, DecodeConfig]:
    rows = rows_of(x, ffn.d)
    check(
        rows.shape[0] <= MAX_ROWS,
        f"{rows.shape[0]} rows: decode takes at most {MAX_ROWS}; use"
        " keepset.kernels.triton_prefill for more",
    )
    check_ffn(rows, ffn)
    config = config or decode_config(rows.shape[0], ffn.n, ffn.d)
    return rows, workspace(tuple(rows.shape), x.dtype, x), config


def _block_rows(rows: Tensor) -> int:
    return 1 if rows.shape[0] == 1 else MAX_ROWS


def _arrivals(rows: Tensor, ffn: FfnWeights, config: DecodeConfig) -> Tensor:
    return workspace((cdiv(ffn.d, config.block_out),), torch.int32, rows)


def _new_list(rows: Tensor, n: int, arrivals: Tensor, config: DecodeConfig) -> _List:
    tiles = cdiv(n, config.tile)
    return _List(
        workspace((rows.shape[0], tiles * config.tile), rows.dtype, rows),
        workspace((tiles * config.tile,), torch.int32, rows),
        workspace((tiles,), torch.int32, rows),
        arrivals,
        n_tiles=tiles,
    )


def _compacted(
    rows: Tensor, ffn: FfnWeights, threshold: float, choose: str, norms: Tensor | None,
    config: DecodeConfig,
) -> _List:  # fmt: skip
    kept = _new_list(rows, ffn.n, _arrivals(rows, ffn, config), config)
    gate = ffn.up if ffn.gate is None else ffn.gate
    launch(
        up_compact, (kept.n_tiles,),
        rows, ffn.up, gate, ffn.up_bias, ffn.gate_bias, norms, float(threshold),
        kept.value, kept.index, kept.count, kept.arrivals,
        rows.shape[0], ffn.d, ffn.n, kept.arrivals.shape[0],
        rows.stride(0), ffn.up.stride(0), gate.stride(0), kept.value.stride(0),
        ACT=ffn.act, CHOOSE=choose, GATED=ffn.gate is not None, UP_BIAS=ffn.up_bias is not None,
        GATE_BIAS=ffn.gate_bias is not None, NORMS=norms is not None, TILE=config.tile,
        BLOCK_B=_block_rows(rows), BLOCK_D=config.block_in,
        ARRIVALS=power_of_two(kept.arrivals.shape[0]), STAGES=config.stages,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    return kept


def _best(dense: _List, n: int, k: int, norms: Tensor | None, config: DecodeConfig) -> _List:
    """The k best of each row out of a list that holds every neuron at its own slot."""
    rows = dense.value.shape[0]
    keep = workspace((rows, n), torch.int8, dense.value)
    block = power_of_two(n)
    launch(
        row_keep, (rows,), dense.value, norms, keep, n, k, dense.value.stride(0),
        NORMS=norms is not None, BLOCK=block, num_warps=min(max(block // 512, 4), 16),
    )  # fmt: skip
    return _marked(dense.value, keep, dense.arrivals, config)


def _up(rows: Tensor, ffn: FfnWeights, kept: _List, mode: str, config: DecodeConfig) -> None:
    programs = config.programs
    if kept.count is None:
        programs = min(programs, max(cdiv(kept.n_kept, config.block_list), 1))
    gate = ffn.up if ffn.gate is None else ffn.gate
    launch(
        rows_up, (programs,),
        rows, ffn.up, gate, ffn.up_bias, ffn.gate_bias,
        kept.value, kept.index, kept.count, kept.arrivals,
        rows.shape[0], ffn.d, kept.n_tiles, kept.n_kept, kept.arrivals.shape[0],
        rows.stride(0), ffn.up.stride(0), gate.stride(0), kept.value.stride(0),
        ACT=ffn.act, MODE=mode, UP_BIAS=ffn.up_bias is not None,
        GATE_BIAS=ffn.gate_bias is not None, TILE=config.tile, TILES=power_of_two(kept.n_tiles),
        PROGRAMS=programs, BLOCK_B=_block_rows(rows), BLOCK_K=config.block_list,
        BLOCK_D=config.block_in, ARRIVALS=power_of_two(kept.arrivals.shape[0]),
        STAGES=config.stages, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip


def _down(
    rows: Tensor, down_t: Tensor, bias: Tensor | None, kept: _List, y: Tensor, config: DecodeConfig
) -> None:
    shares, d = config.shares, down_t.shape[1]
    partial = workspace((shares, rows.shape[0], d), torch.float32, rows)
    launch(
        rows_down, (kept.arrivals.shape[0], shares),
        kept.value, kept.index, kept.count, down_t, bias, partial, kept.arrivals, y,
        rows.shape[0], d, kept.n_tiles, kept.n_kept, down_t.stride(0), kept.value.stride(0),
        BIAS=bias is not None, TILED=kept.count is not None, TILE=config.tile,
        TILES=power_of_two(kept.n_tiles), SHARES=shares, BLOCK_B=_block_rows(rows),
        BLOCK_K=max(config.block_list, 32), BLOCK_D=config.block_out,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
