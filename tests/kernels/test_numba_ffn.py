"""Kernels by numba against `keepset.rules.masks`, products with masks, and `F.linear`."""

import pytest
import torch
from torch.nn import functional as F

from keepset.errors import KernelError, ModelError
from keepset.rules.masks import spread_windows, top_mask

numba_ffn = pytest.importorskip("keepset.kernels.numba_ffn", exc_type=KernelError)

DTYPES = [torch.float32, torch.bfloat16]


def hidden(dtype, *shape, values=None, seed=0):
    """Activations; from few `values`, so that ties are the rule."""
    generator = torch.Generator().manual_seed(seed)
    if values is None:
        return torch.randn(shape, generator=generator).to(dtype)
    places = torch.randint(len(values), shape, generator=generator)
    return torch.tensor(values)[places].to(dtype)


def masked(h, scores, kept, width, first, dense):
    """The reference: dense tokens as they are, others times the mask of their window."""
    text = h[:, first:]
    held = h.clone()
    held[:, first:] = text * spread_windows(top_mask(scores, kept), text.shape[1], width)
    held[:, :dense] = h[:, :dense]
    return held


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", [None, [0.0, -0.0, 1.0, -1.0], [0.5, -2.0, 1e-41]])
@pytest.mark.parametrize("n", [1, 7, 63, 64, 65, 130, 513])
@pytest.mark.parametrize("opening", [(0, 0), (0, 1), (1, 1), (1, 2)])
def test_tokens_keep_what_the_masks_keep(dtype, values, n, opening):
    h = hidden(dtype, 2, 5, n, values=values)
    norms = torch.rand(n, generator=torch.Generator().manual_seed(1))
    before = h.clone()
    for kept in {1, n // 3 or 1, n // 2 or 1, n}:
        for weights in (None, norms):
            scores = h[:, opening[0] :].abs().float()
            scores = scores if weights is None else scores * weights
            held = numba_ffn.keep_by_token(h, kept, weights, opening)
            assert torch.equal(held, masked(h, scores, kept, 1, *opening))
    assert torch.equal(h, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 3, 6])
@pytest.mark.parametrize("opening", [(0, 0), (0, 1), (1, 1), (1, 2)])
def test_windows_keep_what_the_masks_keep(dtype, width, opening):
    tokens, n = 6, 70
    h = hidden(dtype, 3, opening[0] + tokens, n)
    n_windows = -(-tokens // width)
    for values in (None, [0.0, 1.0, 2.0]):
        scores = hidden(torch.float32, 3, n_windows, n, values=values, seed=1).abs()
        for kept in (1, 20, n):
            held = numba_ffn.keep_by_window(h, scores, kept, width, opening)
            assert torch.equal(held, masked(h, scores, kept, width, *opening))


@pytest.mark.parametrize("dtype", DTYPES)
def test_kept_infinity_stays_and_the_rest_of_its_token_goes(dtype):
    h = torch.tensor([[[1.0, -torch.inf, 3.0, torch.inf]]]).to(dtype)
    held = numba_ffn.keep_by_token(h, 2, None, (0, 0))
    assert held.tolist() == [[[0.0, -torch.inf, 0.0, torch.inf]]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_nan_of_the_text_is_refused_and_one_before_it_is_not(dtype, sign):
    h = hidden(dtype, 1, 3, 8)
    h[0, 1, 5] = sign * torch.nan
    for opening in ((0, 1), (1, 2)):  # also where the token runs dense
        with pytest.raises(ModelError, match="NaN"):
            numba_ffn.keep_by_token(h, 2, None, opening)
    h = h[:, 1:]
    assert numba_ffn.keep_by_token(h, 2, None, (1, 1))[0, 0].isnan().any()
    scores = hidden(torch.float32, 1, 2, 8).abs()
    scores[0, 1, 3] = torch.nan
    with pytest.raises(ModelError, match="NaN"):
        numba_ffn.keep_by_window(h, scores, 2, 1, (0, 1))


def test_rows_that_are_not_adjacent_are_read_right():
    h = hidden(torch.float32, 4, 6, 40)[::2, ::3, ::2]
    held = numba_ffn.keep_by_token(h, 5, None, (0, 1))
    assert torch.equal(held, masked(h, h.abs(), 5, 1, 0, 1))


# One rounding to the dtype, and float32 sums in another order.
CLOSE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 8e-3, "atol": 1e-3},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", [None, [0.0, 0.0, 1.0, -1.0]], ids=["floats", "ties"])
@pytest.mark.parametrize("n", [1, 7, 9, 64, 131])
@pytest.mark.parametrize("d", [1, 5, 32])
def test_a_token_is_projected_on_the_units_it_keeps(dtype, values, n, d):
    h = hidden(dtype, 1, 1, n, values=values)
    rows, bias = hidden(dtype, n, d, seed=1), hidden(dtype, d, seed=2)
    norms = rows.float().norm(dim=1)
    for kept in {1, n // 3 or 1, n}:
        for weights in (None, norms):
            scores = h.abs().float() if weights is None else h.abs().float() * weights
            masked = (h * top_mask(scores, kept)).float()
            for extra in (None, bias):
                down = numba_ffn.TokenDown(rows, kept, weights, extra)
                exact = F.linear(masked, rows.T.float(), None if extra is None else extra.float())
                for _ in range(2):  # nothing of the first call is left
                    out = down(h)
                    assert out.shape == (1, 1, d)
                    torch.testing.assert_close(out, exact.to(dtype), **CLOSE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", [None, [0.0, -0.0, 1.0, -1.0, 2.0]])
@pytest.mark.parametrize("n", [1, 7, 65])
def test_tokens_keep_the_scores_from_a_threshold_on(dtype, values, n):
    h, rows = hidden(dtype, 3, 2, n, values=values), hidden(dtype, n, 5, seed=1)
    norms = torch.rand(n, generator=torch.Generator().manual_seed(2))
    for weights in (None, norms):
        scores = h.abs().float() if weights is None else h.abs().float() * weights
        for least in (0.0, 0.5, 1.0, float(scores.max()), float(scores.max()) * 1.01):
            exact = (h * (scores >= least)).float() @ rows.float()
            out = numba_ffn.TokenDown(rows, least, weights, None)(h)
            torch.testing.assert_close(out, exact.to(dtype), **CLOSE[dtype])


def test_tokens_of_one_call_choose_for_themselves():
    h, rows = hidden(torch.float32, 4, 3, 33), hidden(torch.float32, 33, 9, seed=1)
    down = numba_ffn.TokenDown(rows, 7, None, None)
    one_by_one = torch.stack([down(token) for token in h.flatten(0, 1)])
    assert torch.equal(down(h).flatten(0, 1), one_by_one)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_with_nan_chooses_nothing(dtype):
    h = hidden(dtype, 1, 1, 9)
    h[0, 0, 4] = torch.nan
    for least in (3, 0.5):
        with pytest.raises(ModelError, match="NaN"):
            numba_ffn.TokenDown(hidden(dtype, 9, 4), least, None, None)(h)


def test_rows_of_zeros_in_h_are_not_read():
    rows = hidden(torch.float32, 6, 3)
    rows[2] = torch.nan
    h = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(
        numba_ffn.TokenDown(rows, 5, None, None)(h), rows[0] + 2 * rows[1], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outs", "ins"), [(1, 1), (3, 7), (9, 64), (130, 33)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_token_goes_through_a_linear_map(dtype, outs, ins, biased):
    weight = hidden(dtype, outs, ins, seed=1)
    bias = hidden(dtype, outs, seed=2) if biased else None
    x = hidden(dtype, 1, 1, ins)
    exact = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    out = numba_ffn.TokenLinear(weight, bias)(x)
    torch.testing.assert_close(out, exact.to(dtype), **CLOSE[dtype])


def test_halves_are_rounded_to_the_even_bfloat16():
    last = 2**-7  # of a bfloat16 between 1 and 2
    weight = torch.tensor([[1, last / 2], [1 + last, last / 2], [-1, -last / 2], [torch.inf, 1]])
    out = numba_ffn.TokenLinear(weight.bfloat16(), None)(torch.ones(2).bfloat16())
    assert out.tolist() == [1, 1 + 2 * last, -1, torch.inf]
