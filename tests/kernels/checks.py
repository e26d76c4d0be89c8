"""Checks of Triton kernels against the plain references.

Each takes the modules to check, so that the same check can be run on modules that are wrong on
purpose (test_mutants.py).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from keepset.kernels import naive
from keepset.kernels.weights import FfnWeights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16]
if DEVICE == "cuda":  # bfloat16 products are wrong in the interpreter
    DTYPES.append(torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-3}


@dataclass(frozen=True)
class Kernels:
    """The modules under test."""

    ffn: ModuleType
    gemv: ModuleType
    prefill: ModuleType
    state: ModuleType
    topk: ModuleType


def kernels(package: str = "keepset.kernels") -> Kernels:
    names = ("ffn", "gemv", "prefill", "state", "topk")
    return Kernels(*(importlib.import_module(f"{package}.triton_{name}") for name in names))


def assert_close(output: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """The relative RMS error is within the tolerance of the dtype; zeros must be zeros."""
    assert output.shape == expected.shape
    error = (output.double() - expected.double()).square().mean().sqrt()
    size = expected.double().square().mean().sqrt()
    # "not greater" would let NaN pass
    assert bool(error <= TOLERANCE[dtype] * size), f"relative RMS error {error / size:.3g}"


def layer(
    draw: torch.Generator, n: int, d: int, *, gated: bool = False, act: str = "relu",
    biases: bool = True, dtype: torch.dtype = torch.float32,
) -> FfnWeights:  # fmt: skip
    def matrix() -> Tensor:
        return (torch.randn(n, d, generator=draw) / d**0.5).to(DEVICE, dtype)

    def bias(length: int) -> Tensor | None:
        return torch.randn(length, generator=draw).to(DEVICE, dtype) if biases else None

    gate = matrix() if gated else None
    return FfnWeights(
        matrix(), matrix(), gate, act, bias(n), bias(n) if gated else None, bias(d)
    )  # fmt: skip


def whole_layer(draw: torch.Generator, n: int, d: int, dtype: torch.dtype) -> FfnWeights:
    """Small whole numbers: all sums are exact in half precision too, and many scores tie."""
    up, down = (torch.randint(-2, 3, (n, d), generator=draw).to(DEVICE, dtype) for _ in range(2))
    return FfnWeights(up, down)


def tokens(draw: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=draw).to(DEVICE, dtype)


def threshold_in_gap(scores: Tensor) -> float:
    """The middle of the widest gap between the 50% and the 85% quantile: rounding moves no score
    across it, and plenty are kept."""
    ordered = scores.float().flatten().sort().values
    upper = ordered[len(ordered) // 2 : int(0.85 * len(ordered)) + 1]
    if len(upper) < 2:
        return float(upper[0] / 2)
    widest = (upper[1:] - upper[:-1]).argmax()
    return float((upper[widest] + upper[widest + 1]) / 2)


def check_decode(
    k: Kernels, draw: torch.Generator, *, rows: int = 3, n: int = 150, d: int = 72,
    gated: bool = False, act: str = "relu", choose: str = "hidden", biases: bool = True,
    norms: bool = False, zero: bool = False, dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """`zero`: with the threshold zero, and rows of units that no token uses are NaN."""
    ffn = layer(draw, n, d, gated=gated, act=act, biases=biases, dtype=dtype)
    x = tokens(draw, rows, d, dtype=dtype)
    factors = torch.rand(n, generator=draw).to(DEVICE) + 0.5 if norms else None
    score = (naive.hidden(x, ffn) if choose == "hidden" else naive.gate_values(x, ffn)).abs()
    threshold = threshold_in_gap(score if factors is None else score * factors)
    rule = {"threshold": 0.0 if zero else threshold, "choose": choose, "norms": factors}
    expected = naive.sparse_ffn(x, ffn, **rule)
    if zero:
        ffn.down_t[(score == 0).all(dim=0)] = float("nan")
    y = k.ffn.sparse_decode(x, ffn, config=small_blocks(k), **rule)
    assert y.dtype == dtype
    assert_close(y, expected, dtype)


def few_outputs(k: Kernels) -> object:
    """Several steps and shares at test sizes, and few programs, which cost time here."""
    return k.gemv.GemvConfig(block_in=32, block_out=64, shares=2)


def small_blocks(k: Kernels) -> object:
    return k.ffn.DecodeConfig(tile=64, block_in=64, down=few_outputs(k))


def check_best(
    k: Kernels, draw: torch.Generator, kept: int, *, rows: int = 3, n: int = 150,
    dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """Whole numbers tie all the time, and nothing rounds: the keep sets must be the same."""
    ffn = whole_layer(draw, n, 24, dtype)
    x = torch.randint(-2, 3, (rows, 24), generator=draw).to(DEVICE, dtype)
    y = k.ffn.sparse_decode(x, ffn, k=kept, config=small_blocks(k))
    assert_close(y, naive.sparse_ffn(x, ffn, k=kept), dtype)


def check_shared_decode(
    k: Kernels, draw: torch.Generator, kept: int = 41, *, rows: int = 3, n: int = 150, d: int = 72,
    gated: bool = False, act: str = "relu", dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    ffn = layer(draw, n, d, gated=gated, act=act, dtype=dtype)
    x, keep = tokens(draw, rows, d, dtype=dtype), some_units(draw, n, kept)
    y = k.ffn.shared_set_decode(x, ffn, keep, config=small_blocks(k))
    assert_close(y, naive.shared_set_ffn(x, ffn, keep), dtype)


def check_gemv(
    k: Kernels, draw: torch.Generator, *, rows: int = 3, n_in: int = 150, outs: int = 72,
    choice: str = "threshold", kept: int = 41, norms: bool = False, biases: bool = True,
    act: str | None = None, gated: bool = False, dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """`choice`: threshold, k, marks of each token, the indices of a shared set, or all."""
    x, weights = tokens(draw, rows, n_in, dtype=dtype), tokens(draw, n_in, outs, dtype=dtype)
    weights /= n_in**0.5
    bias = tokens(draw, outs, dtype=dtype) if biases else None
    factors = torch.rand(n_in, generator=draw).to(DEVICE) + 0.5 if norms else None
    score = x.float().abs() if factors is None else x.float().abs() * factors
    rule = {
        "threshold": {"threshold": threshold_in_gap(score), "norms": factors},
        "k": {"k": kept, "norms": factors},
        "marks": {"keep": (torch.rand(rows, n_in, generator=draw) < 0.3).to(DEVICE)},
        "set": {"keep": torch.randperm(n_in, generator=draw)[:kept].to(DEVICE)},  # in no order
        "all": {},
    }[choice] | {"act": act, "gated": gated}
    expected = naive.sparse_gemv(x, weights, bias, **rule)
    arrivals = k.gemv.new_arrivals(weights)
    for _ in range(2):  # the first call leaves the counters as the second needs them
        y = k.gemv.sparse_gemv(
            x, weights, bias, **rule, arrivals=arrivals, config=few_outputs(k)
        )  # fmt: skip
        assert y.dtype == dtype
        assert_close(y, expected, dtype)
    assert not arrivals.any(), "counters must be ready for the next call"


def some_units(draw: torch.Generator, n: int, kept: int) -> Tensor:
    return torch.randperm(n, generator=draw)[:kept].sort().values.to(DEVICE)


def check_shared_gemm(
    k: Kernels, draw: torch.Generator, kept: int = 41, *, rows: int = 70, n: int = 150,
    d: int = 72, gated: bool = False, act: str = "relu", dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    ffn = layer(draw, n, d, gated=gated, act=act, dtype=dtype)
    x, keep = tokens(draw, rows, d, dtype=dtype), some_units(draw, n, kept)
    config = k.prefill.GemmConfig(tokens=32, units=32, outputs=32, inputs=32, group=2)
    y = k.prefill.shared_set_ffn(x, ffn, keep, config=config)
    assert_close(y, naive.shared_set_ffn(x, ffn, keep), dtype)


def check_compacted(
    k: Kernels, draw: torch.Generator, capacity: int = 16, *, rows: int = 5, n: int = 150,
    d: int = 72, gated: bool = False, act: str = "relu", natural: bool = False,
    dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    ffn = layer(draw, n, d, gated=gated, act=act, dtype=dtype)
    x = tokens(draw, rows, d, dtype=dtype)
    score = (naive.gate_values(x, ffn) if gated else naive.hidden(x, ffn)).abs()
    threshold = 0.0 if natural else threshold_in_gap(score)
    config = k.prefill.GemmConfig(tokens=16, units=64, outputs=64, inputs=64)
    y = k.prefill.compacted_prefill(
        x, ffn, threshold=threshold, capacity=capacity, config=config
    )  # fmt: skip
    choose = "gate" if gated else "hidden"
    assert_close(y, naive.sparse_ffn(x, ffn, threshold=threshold, choose=choose), dtype)


def check_window_topk(
    k: Kernels, draw: torch.Generator, kept: int, *, rows: int = 5, n: int = 150, window: int = 2,
    norms: bool = False, dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    h = torch.randint(-3, 4, (rows, n), generator=draw).to(DEVICE, dtype)
    factors = torch.randint(1, 3, (n,), generator=draw).float().to(DEVICE) if norms else None
    output = k.topk.window_topk(h, kept, window=window, norms=factors)
    expected = naive.window_topk(h, kept, window=window, norms=factors)
    assert output.dtype == torch.int32
    assert output.tolist() == expected.tolist()


def check_marks(k: Kernels, draw: torch.Generator, kept: int = 20) -> None:
    h = torch.randint(-3, 4, (3, 90), generator=draw).float().to(DEVICE)
    expected = naive.keep_best(h.abs(), kept).to(torch.int8)
    assert k.topk.top_marks(h, kept).equal(expected)


def check_any_float(k: Kernels, draw: torch.Generator) -> None:
    """Tiny, huge, infinite and equal up to the last bit."""
    h = torch.randn(2, 400, generator=draw).exp2() ** 30
    h[0, 50:] = 1.0 + torch.randint(0, 2, (350,), generator=draw) * 2.0**-23
    h[1, 7], h[1, 9] = float("inf"), -0.0
    output = k.topk.window_topk(h.to(DEVICE), 100).cpu()
    assert output.tolist() == naive.window_topk(h, 100).tolist()


def check_state(
    k: Kernels, draw: torch.Generator, *, batch: int = 2, groups: int = 2, n: int = 19,
    head_dim: int = 5, by_channel: bool = True, ragged: bool = False, plain: bool = False,
    dtype: torch.dtype = torch.float32, state_dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    # Of the three heads of a group one steps at the lower limit, one within, one at the upper.
    heads, pace = 3 * groups, torch.tensor([-7.0, -2.0, 3.0]).repeat(groups)
    channels = n + 6 if ragged else n
    make = k.state.new_state if by_channel else torch.empty
    state = make(batch, heads, head_dim, n, dtype=state_dtype, device=DEVICE)
    state.copy_(torch.randn(state.shape, generator=draw))
    given = {
        "x": tokens(draw, batch, heads, head_dim, dtype=dtype),
        "dt": tokens(draw, batch, heads, dtype=dtype) / 4,
        "A": -torch.rand(heads, generator=draw).to(DEVICE) * 4 - 0.1,
        "B": tokens(draw, batch, groups, channels, dtype=dtype),
        "C": tokens(draw, batch, groups, channels, dtype=dtype),
    }
    if plain:
        given["dt"] = given["dt"].abs()
    else:
        given |= {
            "D": tokens(draw, heads),
            "dt_bias": tokens(draw, heads) / 4 + pace.to(DEVICE),
            "dt_softplus": True,
            "dt_limit": (0.02, 0.8),
            "z": tokens(draw, batch, heads, head_dim, dtype=dtype),
        }
    if ragged:
        kept = torch.tensor([n - 3 * group for group in range(groups)])
        order = [torch.randperm(channels, generator=draw)[:n] for _ in range(groups)]
        given |= {"kept": kept.int().to(DEVICE), "index": torch.stack(order).int().to(DEVICE)}
    expected, new = naive.state_step(state, **given)
    y = k.state.state_step(state, **given)
    assert y.dtype == dtype
    assert_close(y, expected, dtype)
    assert_close(state, new, state_dtype)
