"""Products with the kept inputs of each token, against the plain reference."""

from __future__ import annotations

import pytest
import torch
from checks import DEVICE, DTYPES, assert_close, check_gemv, few_outputs, kernels, tokens

from keepset.errors import KernelError
from keepset.kernels import naive
from keepset.kernels.triton_gemv import new_arrivals, sparse_gemv
from keepset.kernels.triton_topk import top_marks
from keepset.kernels.weights import ACTIVATIONS

K = kernels()
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
SMALL = {"config": few_outputs(K)}


@dtypes
@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("choice", ["threshold", "k", "marks", "set", "all"])
def test_every_choice(draw, choice, rows, dtype) -> None:
    check_gemv(K, draw, choice=choice, rows=rows, dtype=dtype)


@dtypes
@pytest.mark.parametrize("rows", [1, 3])
def test_gate_and_up_side_by_side(draw, rows, dtype) -> None:
    check_gemv(K, draw, rows=rows, act="silu", gated=True, dtype=dtype)
    check_gemv(K, draw, rows=rows, act="gelu", gated=True, biases=False, choice="k", dtype=dtype)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(draw, act) -> None:
    check_gemv(K, draw, rows=1, act=act, n_in=40, outs=24)


@pytest.mark.parametrize("choice", ["threshold", "k"])
def test_norms_weigh_the_score(draw, choice) -> None:
    check_gemv(K, draw, choice=choice, norms=True)


@pytest.mark.parametrize(
    ("rows", "n_in", "outs"), [(1, 1, 2), (16, 65, 34), (2, 64, 64), (7, 63, 130)]
)
def test_odd_sizes(draw, rows, n_in, outs) -> None:
    for gated in (False, True):
        check_gemv(
            K, draw, rows=rows, n_in=n_in, outs=outs, act="relu" if gated else None, gated=gated
        )
    check_gemv(K, draw, rows=rows, n_in=n_in, outs=outs, choice="k", kept=min(n_in, 17))


@dtypes
@pytest.mark.parametrize(("rows", "kept"), [(1, 14), (5, 15), (2, 0), (2, 90)])
def test_ties_go_to_the_lowest_index(draw, rows, kept, dtype) -> None:
    """Whole numbers tie all the time, and nothing rounds: the outputs must be the same."""
    x, weights = (
        torch.randint(-2, 3, shape, generator=draw).to(DEVICE, dtype)
        for shape in ((rows, 90), (90, 24))
    )
    y = sparse_gemv(x, weights, k=kept, **SMALL)
    assert y.float().equal(naive.sparse_gemv(x, weights, k=kept))
    marks = top_marks(x, kept)
    assert marks.equal(naive.keep_best(x.float().abs(), kept).to(torch.int8))


def test_a_score_that_equals_the_threshold_is_kept(draw) -> None:
    x = torch.randint(-3, 4, (3, 70), generator=draw).to(DEVICE, torch.float32)
    weights = tokens(draw, 70, 24)
    for threshold in (0.0, 1.0, 2.0, 3.0):
        expected = x.where(x.abs() >= threshold, 0.0) @ weights
        assert_close(sparse_gemv(x, weights, threshold=threshold, **SMALL), expected, x.dtype)


def test_nothing_and_everything(draw) -> None:
    x, weights, bias = tokens(draw, 2, 40), tokens(draw, 40, 24), tokens(draw, 24)
    nothing, all_inputs = bias.expand(2, 24), torch.arange(40, device=DEVICE)
    for choice in (
        {"threshold": 1e9}, {"k": 0}, {"keep": all_inputs[:0]},
        {"keep": torch.zeros(2, 40, dtype=torch.bool, device=DEVICE)},
    ):  # fmt: skip
        assert sparse_gemv(x, weights, bias, **choice, **SMALL).equal(nothing)
    dense = x @ weights + bias
    for choice in ({}, {"threshold": 0.0}, {"k": 40}, {"keep": all_inputs.int()}):
        assert_close(sparse_gemv(x, weights, bias, **choice, **SMALL), dense, x.dtype)
    assert sparse_gemv(x[:0], weights, k=3).shape == (0, 24)
    assert sparse_gemv(x, weights[:, :0], k=3).shape == (2, 0)


def test_more_than_sixteen_tokens_share_a_set(draw) -> None:
    check_gemv(K, draw, rows=19, choice="set", kept=23)
    check_gemv(K, draw, rows=17, choice="all")


def test_rows_that_nobody_keeps_are_not_read(draw) -> None:
    """Their weights are NaN: a product that reads them and multiplies by zero shows it."""
    x, weights = tokens(draw, 3, 70), tokens(draw, 70, 24)
    kept = torch.rand(3, 70, generator=draw) < 0.2
    expected = naive.sparse_gemv(x, weights, keep=kept.to(DEVICE))
    weights[~kept.any(dim=0)] = float("nan")
    y = sparse_gemv(x, weights, keep=kept.to(DEVICE), **SMALL)
    assert_close(y, expected, x.dtype)


def test_one_share_needs_no_counters(draw) -> None:
    x, weights = tokens(draw, 1, 40), tokens(draw, 40, 24)
    config = K.gemv.GemvConfig(block_in=32, block_out=16, shares=1)
    y = sparse_gemv(x, weights, threshold=0.5, config=config)
    assert_close(y, naive.sparse_gemv(x, weights, threshold=0.5), x.dtype)


def test_blocks_that_are_chosen_by_the_shape(draw) -> None:
    x, weights = tokens(draw, 1, 300), tokens(draw, 300, 24)
    y = sparse_gemv(x, weights, threshold=0.5, arrivals=new_arrivals(weights))
    assert_close(y, naive.sparse_gemv(x, weights, threshold=0.5), x.dtype)


@pytest.mark.parametrize("rows", [1, 3])
def test_nan_is_seen_in_its_token_and_in_no_other(draw, rows) -> None:
    x, weights = tokens(draw, rows, 40), tokens(draw, 40, 24)
    x[0, 5] = float("nan")
    y = sparse_gemv(x, weights, threshold=1.0, **SMALL)
    assert y[0].isnan().all()
    if rows > 1:
        assert_close(y[1:], naive.sparse_gemv(x[1:], weights, threshold=1.0), x.dtype)


def test_views_and_misaligned_memory(draw) -> None:
    x, weights = tokens(draw, 41, 3).t(), tokens(draw, 41, 31)[:, 3:27]
    expected = naive.sparse_gemv(x, weights, k=9)
    assert_close(sparse_gemv(x, weights, k=9, **SMALL), expected, torch.float32)
    wide = tokens(draw, 3, 90)[:, 7:48]
    y = sparse_gemv(wide.unflatten(0, (3, 1)), weights, threshold=0.5, **SMALL)
    assert y.shape == (3, 1, 24)
    assert_close(y[:, 0], naive.sparse_gemv(wide, weights, threshold=0.5), torch.float32)


def test_refusals(draw) -> None:
    x, weights = tokens(draw, 2, 40), tokens(draw, 40, 24)
    many, units = tokens(draw, 17, 40), torch.arange(9, device=DEVICE)
    mask = torch.ones(2, 40, dtype=torch.bool, device=DEVICE)
    refused = [
        ("one of threshold, k and keep", lambda: sparse_gemv(x, weights, k=1, threshold=0.0)),
        ("cannot keep 41 of 40", lambda: sparse_gemv(x, weights, k=41)),
        ("17 rows: at most 16", lambda: sparse_gemv(many, weights, threshold=0.0)),
        (r"keep is \(2, 40\), x \(17, 40\)|17 rows", lambda: sparse_gemv(many, weights, keep=mask)),
        (r"keep is \(1, 40\), x \(2, 40\)", lambda: sparse_gemv(x, weights, keep=mask[:1])),
        ("bool or int8", lambda: sparse_gemv(x, weights, keep=mask.long())),
        ("mask.nonzero", lambda: sparse_gemv(x, weights, keep=mask[0])),
        ("norms go with", lambda: sparse_gemv(x, weights, norms=x[0])),
        ("norms has shape", lambda: sparse_gemv(x, weights, k=1, norms=x[0, 1:])),
        ("bias has shape", lambda: sparse_gemv(x, weights, x[0])),
        ("x has shape", lambda: sparse_gemv(x[:, 1:], weights)),
        ("rows is .* convert one", lambda: sparse_gemv(x.half(), weights)),
        ("not contiguous", lambda: sparse_gemv(x, tokens(draw, 24, 40).t())),
        ("must be", lambda: sparse_gemv(x, weights[0])),
        ("unknown activation", lambda: sparse_gemv(x, weights, act="tanh")),
        ("needs an activation", lambda: sparse_gemv(x, weights, gated=True)),
        ("new_arrivals", lambda: sparse_gemv(
            x, weights, arrivals=units[:1].float(), **SMALL)),
    ]  # fmt: skip
    for message, call in refused:
        with pytest.raises(KernelError, match=message):
            call()
    if DEVICE == "cpu":  # elsewhere looking would wait for the device
        with pytest.raises(KernelError, match=r"outside 0\.\.39"):
            sparse_gemv(x, weights, keep=units + 32)
