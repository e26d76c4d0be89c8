"""What only a GPU can show of the kernels: CUDA graphs, no waiting, no races. Not a part of
`make test`: `make test-gpu` runs this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from checks import DEVICE, layer, some_units, tokens
from torch import Tensor

from keepset.kernels.triton_ffn import shared_set_decode, sparse_decode
from keepset.kernels.triton_gemv import new_arrivals, sparse_gemv
from keepset.kernels.triton_prefill import compacted_prefill, shared_set_ffn
from keepset.kernels.triton_state import new_state, state_step
from keepset.kernels.triton_topk import top_marks, window_topk
from keepset.kernels.weights import MAX_ROWS

Call = Callable[[Tensor], Tensor]
N, D = 1000, 520  # several programs and shares, and no multiples of a block
RUNS = 200


def _gemv(draw: torch.Generator, dtype: torch.dtype, outs: int, **options: object) -> Call:
    rows = (tokens(draw, D, outs) / D**0.5).to(dtype)
    bias, arrivals = tokens(draw, outs, dtype=dtype), new_arrivals(rows)
    return lambda x: sparse_gemv(x, rows, bias, arrivals=arrivals, **options)


def calls(draw: torch.Generator, dtype: torch.dtype) -> dict[str, Call]:
    """Every public function, of x (rows, D), up to 16 rows."""
    ffn = layer(draw, N, D, gated=True, act="silu", dtype=dtype)
    few, inputs = some_units(draw, N, N // 10), some_units(draw, D, D // 3)
    norms = torch.rand(D, generator=draw).to(DEVICE) + 0.5
    A, B = -torch.rand(8, generator=draw).to(DEVICE), tokens(draw, MAX_ROWS, 1, 38, dtype=dtype)

    def step(x: Tensor) -> Tensor:
        state = new_state(len(x), 8, 65, 38, dtype=torch.float32, device=DEVICE).fill_(0.5)
        heads, b = x.view(len(x), 8, 65), B[: len(x)]
        return state_step(state, heads, heads[..., 0].contiguous(), A, b, b, dt_softplus=True)

    return {
        "gemv threshold": _gemv(draw, dtype, 300, threshold=0.8, norms=norms),
        "gemv top-k": _gemv(draw, dtype, 300, k=D // 4),
        "gemv gate and up": _gemv(draw, dtype, 2 * N, threshold=0.8, act="silu", gated=True),
        "gemv shared set": _gemv(draw, dtype, 300, keep=inputs),
        "gemv dense": _gemv(draw, dtype, 300),
        "decode threshold": lambda x: sparse_decode(x, ffn, threshold=0.1),
        "decode top-k": lambda x: sparse_decode(x, ffn, k=N // 10),
        "decode by gate": lambda x: sparse_decode(x, ffn, threshold=0.1, choose="gate"),
        "decode shared set": lambda x: shared_set_decode(x, ffn, few),
        "shared set, many tokens": lambda x: shared_set_ffn(x.repeat(8, 1), ffn, few),
        "compacted prefill": lambda x: compacted_prefill(x, ffn, threshold=0.5, capacity=8),
        "window top-k": lambda x: window_topk(x, 50, window=4),
        "marks": lambda x: top_marks(x, 50),
        "state step": step,
    }


NAMES = sorted(calls(torch.Generator().manual_seed(0), torch.float32))
names = pytest.mark.parametrize("name", NAMES)
row_numbers = pytest.mark.parametrize("rows", [1, MAX_ROWS])
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:]
)


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Whatever waits for the device is an error."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_waiting_is_noticed() -> None:
    with pytest.raises(RuntimeError), _no_waiting():
        torch.ones(3, device=DEVICE).sum().item()


@dtypes
@row_numbers
@names
def test_a_graph_replays_on_new_inputs(draw, name: str, rows: int, dtype: torch.dtype) -> None:
    call = calls(draw, dtype)[name]
    first, second = tokens(draw, rows, D, dtype=dtype), tokens(draw, rows, D, dtype=dtype)
    x = first.clone()
    expected = [call(first).clone(), call(second).clone()]  # compiles too
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), _no_waiting():
        call(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call(x)
    for given, right in ((first, expected[0]), (second, expected[1]), (first, expected[0])):
        with _no_waiting():
            x.copy_(given)
            output.zero_()
            graph.replay()
        assert output.equal(right)


@dtypes
@row_numbers
@names
def test_equal_inputs_give_equal_bits(draw, name: str, rows: int, dtype: torch.dtype) -> None:
    """While other work takes multiprocessors away, so that programs end in another order."""
    call, x = calls(draw, dtype)[name], tokens(draw, rows, D, dtype=dtype)
    right = call(x).clone()
    other, busy = torch.cuda.Stream(), torch.randn(512, 512, device=DEVICE)
    other.wait_stream(torch.cuda.current_stream())
    differing = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for run in range(RUNS):
        if run % 3:
            with torch.cuda.stream(other):
                torch.mm(busy, busy)
        differing += (call(x) != right).any()
    assert int(differing) == 0
