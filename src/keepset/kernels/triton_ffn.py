"""The feed-forward layer at decode: 1 to 16 tokens, kept neurons only.

    sparse_decode(x, ffn, threshold=t)           keep a neuron where its score exceeds t
    sparse_decode(x, ffn, k=k)                   keep the k best of each row, exactly
    shared_set_decode(x, ffn, keep)              one known keep set for all rows

`ffn` is `keepset.kernels.weights.FfnWeights`; x is (..., d) with at most `MAX_ROWS` rows. More
rows go to `keepset.kernels.triton_prefill`; the down projection alone is
`keepset.kernels.triton_gemv.sparse_gemv`, which also ends these. Nothing waits for the device and
every workspace has a size that the shapes alone decide, so the calls can be captured in a CUDA
graph. Equal inputs give equal bits. docs/KERNELS.md, "Layout" and "Decode", says how the kernels
work together, and what each rule saves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from keepset.kernels.launch import (
    cdiv,
    check,
    check_ffn,
    check_vector,
    launch,
    power_of_two,
    rows_of,
    workspace,
)
from keepset.kernels.triton_decode import rows_up
from keepset.kernels.triton_gemv import GemvConfig, check_keep, gemv_config, sparse_gemv
from keepset.kernels.triton_topk import MAX_UNITS, top_marks
from keepset.kernels.weights import MAX_ROWS, FfnWeights


@dataclass(frozen=True)
class DecodeConfig:
    """Block sizes; `decode_config` chooses them from the shape.

    Args:
        tile: Neurons per program of a projection to neurons, a power of two.
        block_in: Inputs per step of it.
        down: Block sizes of the down projection.
        warps: Of a projection to neurons.
        stages: Loads in flight.
    """

    tile: int
    block_in: int
    down: GemvConfig
    warps: int = 4
    stages: int = 3


def decode_config(rows: int, n: int, d: int) -> DecodeConfig:
    """Block sizes for `rows` tokens, n neurons and d inputs. Estimates: not tuned on a device."""
    block_in = min(max(power_of_two(d), 16), 128 if rows == 1 else 64)
    return DecodeConfig(32, block_in, gemv_config(rows, n, d))


@dataclass(frozen=True)
class _Choice:
    """What keeps a neuron: marks, or a score of at least the threshold."""

    threshold: float | None = None
    marks: Tensor | None = None
    norms: Tensor | None = None


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
        k: Or keep the k largest of each row, ties to the lowest index; one more launch.
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
    rows, config = _prepared(x, ffn, config)
    if not len(rows):
        return torch.empty_like(x)
    value, arrivals = workspace((len(rows), ffn.n), x.dtype, x), _arrivals(ffn, config, x)
    _up(rows, ffn, value, arrivals, config, _dense_mode(ffn) if choose == "hidden" else "gate")
    choice = _Choice(_above(threshold or 0.0), norms=norms)
    if k is not None:
        choice = _Choice(marks=top_marks(value, k, norms=norms))
    if choose == "gate":
        _up(rows, ffn, value, arrivals, config, "times", choice)
        choice = _Choice(_above(0.0))  # what is left out is zero now
    y = sparse_gemv(
        value, ffn.down_t, ffn.down_bias, threshold=choice.threshold, keep=choice.marks,
        norms=choice.norms, arrivals=arrivals, config=config.down,
    )  # fmt: skip
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
    rows, config = _prepared(x, ffn, config)
    if not len(rows):
        return torch.empty_like(x)
    value, arrivals = workspace((len(rows), ffn.n), x.dtype, x), _arrivals(ffn, config, x)
    _up(rows, ffn, value, arrivals, config, _dense_mode(ffn), index=keep)
    y = sparse_gemv(
        value, ffn.down_t, ffn.down_bias, keep=keep, arrivals=arrivals, config=config.down
    )
    return y.view(x.shape)


def _prepared(
    x: Tensor, ffn: FfnWeights, config: DecodeConfig | None
) -> tuple[Tensor, DecodeConfig]:
    rows = rows_of(x, ffn.d)
    check(
        rows.shape[0] <= MAX_ROWS,
        f"{rows.shape[0]} rows: decode takes at most {MAX_ROWS}; use"
        " keepset.kernels.triton_prefill for more",
    )
    check_ffn(rows, ffn)
    return rows, config or decode_config(rows.shape[0], ffn.n, ffn.d)


def _arrivals(ffn: FfnWeights, config: DecodeConfig, like: Tensor) -> Tensor:
    """Counters of the down projection; the projection before it clears them."""
    return workspace((cdiv(ffn.d, config.down.block_out),), torch.int32, like)


def _dense_mode(ffn: FfnWeights) -> str:
    return "plain" if ffn.gate is None else "gated"


def _above(threshold: float) -> float:
    """The least float32 above `threshold`: kernels keep what is at least a threshold."""
    return float(np.nextafter(np.float32(threshold), np.float32(math.inf)))


def _up(
    rows: Tensor, ffn: FfnWeights, value: Tensor, arrivals: Tensor, config: DecodeConfig,
    mode: str, choice: _Choice | None = None, index: Tensor | None = None,
) -> None:  # fmt: skip
    n = ffn.n if index is None else len(index)
    choice = choice or _Choice()
    gate = ffn.up if ffn.gate is None else ffn.gate
    launch(
        rows_up, (max(cdiv(n, config.tile), 1),),
        rows, ffn.up, gate, ffn.up_bias, ffn.gate_bias, choice.norms, choice.marks, index,
        choice.threshold or 0.0, value, arrivals,
        len(rows), ffn.d, n, len(arrivals),
        rows.stride(0), ffn.up.stride(0), gate.stride(0), value.stride(0),
        MODE=mode, ACT=ffn.act, CHOICE="threshold" if choice.marks is None else "marks",
        INDEXED=index is not None, NORMS=choice.norms is not None,
        UP_BIAS=ffn.up_bias is not None, GATE_BIAS=ffn.gate_bias is not None, TILE=config.tile,
        BLOCK_B=1 if len(rows) == 1 else MAX_ROWS, BLOCK_D=config.block_in,
        ARRIVALS=power_of_two(len(arrivals)), STAGES=config.stages,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
