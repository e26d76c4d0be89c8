"""Sparse decode and known sets at decode, against the plain reference."""

from __future__ import annotations

import pytest
import torch
from checks import (
    DEVICE,
    DTYPES,
    assert_close,
    check_best,
    check_decode,
    check_shared_decode,
    kernels,
    layer,
    small_blocks,
    tokens,
)

from keepset.errors import KernelError
from keepset.kernels import naive
from keepset.kernels.triton_ffn import shared_set_decode, sparse_decode
from keepset.kernels.weights import ACTIVATIONS, FfnWeights

K = kernels()
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


@dtypes
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("gated", "choose", "act"),
    [(False, "hidden", "relu"), (True, "hidden", "silu"), (True, "gate", "silu")],
)
def test_threshold(draw, rows, gated, choose, act, dtype) -> None:
    check_decode(K, draw, rows=rows, gated=gated, choose=choose, act=act, dtype=dtype)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(draw, act) -> None:
    check_decode(K, draw, rows=1, act=act, biases=False, n=60)


@pytest.mark.parametrize(("rows", "n", "d"), [(1, 1, 1), (16, 65, 33), (2, 64, 64), (7, 63, 129)])
def test_odd_sizes(draw, rows, n, d) -> None:
    check_decode(K, draw, rows=rows, n=n, d=d)
    check_shared_decode(K, draw, min(n, 17), rows=rows, n=n, d=d)


@pytest.mark.parametrize("gated", [False, True])
def test_norms_weigh_the_score(draw, gated) -> None:
    check_decode(K, draw, gated=gated, norms=True)


@pytest.mark.parametrize("rows", [1, 2])
def test_at_threshold_zero_rows_of_zeros_are_not_read(draw, rows) -> None:
    check_decode(K, draw, rows=rows, zero=True)


@dtypes
@pytest.mark.parametrize(("rows", "kept"), [(1, 14), (5, 15), (2, 0), (2, 150)])
def test_best_ties_to_the_lowest_index(draw, rows, kept, dtype) -> None:
    check_best(K, draw, kept, rows=rows, dtype=dtype)


def test_best_by_gate(draw) -> None:
    ffn, x = layer(draw, 90, 40, gated=True, act="gelu"), tokens(draw, 2, 40)
    y = sparse_decode(x, ffn, k=11, choose="gate", config=small_blocks(K))
    assert_close(y, naive.sparse_ffn(x, ffn, k=11, choose="gate"), torch.float32)


@dtypes
@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize(("gated", "act"), [(False, "gelu_tanh"), (True, "silu")])
def test_shared_set(draw, rows, gated, act, dtype) -> None:
    check_shared_decode(K, draw, rows=rows, gated=gated, act=act, dtype=dtype)


def test_empty_and_full_sets(draw) -> None:
    ffn, x = layer(draw, 70, 40), tokens(draw, 2, 40)
    blocks = {"config": small_blocks(K)}
    nothing = ffn.down_bias.expand(2, 40)
    all_units = torch.arange(70, device=DEVICE)
    assert sparse_decode(x, ffn, threshold=float("inf"), **blocks).equal(nothing)
    assert shared_set_decode(x, ffn, all_units[:0], **blocks).equal(nothing)
    dense = naive.down(naive.hidden(x, ffn), ffn)
    for y in (
        sparse_decode(x, ffn, threshold=-1.0, **blocks),
        sparse_decode(x, ffn, threshold=0.0, **blocks),
        shared_set_decode(x, ffn, all_units.int(), **blocks),
    ):
        assert_close(y, dense, torch.float32)


def test_blocks_that_are_chosen_by_the_shape(draw) -> None:
    ffn, x = layer(draw, 70, 72, gated=True, act="silu"), tokens(draw, 1, 72)
    assert_close(sparse_decode(x, ffn, k=9), naive.sparse_ffn(x, ffn, k=9), torch.float32)


@pytest.mark.parametrize("rows", [1, 3])
def test_nan_is_seen_in_its_row_and_in_no_other(draw, rows) -> None:
    ffn, x = layer(draw, 70, 40), tokens(draw, rows, 40)
    x[0, 5] = float("nan")
    y = sparse_decode(x, ffn, threshold=1.0, config=small_blocks(K))
    assert y[0].isnan().all()
    if rows > 1:
        assert_close(y[1:], naive.sparse_ffn(x[1:], ffn, threshold=1.0), torch.float32)


def test_views_and_misaligned_memory(draw) -> None:
    big = layer(draw, 70, 47)
    ffn = FfnWeights(big.up[:, 3:44], big.down_t[:, 5:46])  # neither starts on 16 bytes
    x = tokens(draw, 41, 3).t()
    expected = naive.sparse_ffn(x, ffn, k=9)
    y = sparse_decode(x, ffn, k=9, config=small_blocks(K))
    assert_close(y, expected, torch.float32)
    batch = x.unflatten(0, (3, 1))
    assert sparse_decode(batch, ffn, k=9, config=small_blocks(K)).shape == (3, 1, 41)
    assert sparse_decode(x[:0], ffn, k=9).shape == (0, 41)


def test_refusals(draw) -> None:
    ffn, x = layer(draw, 70, 40), tokens(draw, 2, 40)
    units = torch.arange(9, device=DEVICE)
    refused = [
        ("either threshold or k", lambda: sparse_decode(x, ffn)),
        ("either threshold or k", lambda: sparse_decode(x, ffn, k=1, threshold=0.0)),
        ("cannot keep 71 of 70", lambda: sparse_decode(x, ffn, k=71)),
        ("needs a layer with a gate", lambda: sparse_decode(x, ffn, k=1, choose="gate")),
        ("at most 16", lambda: sparse_decode(tokens(draw, 17, 40), ffn, k=1)),
        ("x has shape", lambda: sparse_decode(x[:, 1:], ffn, k=1)),
        ("convert one", lambda: sparse_decode(x.half(), ffn, k=1)),
        ("take float32", lambda: sparse_decode(x.double(), ffn, k=1)),
        ("norms has shape", lambda: sparse_decode(x, ffn, k=1, norms=tokens(draw, 9))),
        ("mask.nonzero", lambda: shared_set_decode(x, ffn, units > 3)),
        ("not contiguous", lambda: shared_set_decode(x, ffn, units[::2])),
        ("neuron-major", lambda: FfnWeights(ffn.up, ffn.down_t.t())),
        ("unknown activation", lambda: FfnWeights(ffn.up, ffn.down_t, act="tanh")),
        ("down_t is not contiguous", lambda: sparse_decode(
            x, FfnWeights(ffn.up, ffn.up.t().contiguous().t()), k=1)),
    ]  # fmt: skip
    for message, call in refused:
        with pytest.raises(KernelError, match=message):
            call()
    if DEVICE == "cpu":  # elsewhere looking would wait for the device
        with pytest.raises(KernelError, match=r"outside 0\.\.69"):
            shared_set_decode(x, ffn, units + 62)


def test_weights_of_a_models_layers(draw) -> None:
    up, gate, down = torch.nn.Linear(24, 40), torch.nn.Linear(24, 40), torch.nn.Linear(40, 24)
    ffn = FfnWeights.from_linears(up, down, gate, "silu")
    x = torch.randn(3, 24, generator=draw)
    with torch.no_grad():
        expected = down(torch.nn.functional.silu(gate(x)) * up(x))
    assert_close(naive.down(naive.hidden(x, ffn), ffn), expected, torch.float32)
    keep = torch.tensor([1, 3, 39])
    assert_close(
        naive.shared_set_ffn(x, ffn, keep),
        naive.down(naive.hidden(x, ffn) * torch.isin(torch.arange(40), keep), ffn),
        torch.float32,
    )
