"""The loss of tokens, by torch and by numba, against float64."""

import pytest
import torch

from keepset.kernels.selection import Selection
from keepset.measure.loss import token_nll


def logits_and_ids(words, dtype, tokens=5, size=4.0):
    generator = torch.Generator().manual_seed(words)
    logits = size * torch.randn(3, tokens, words, generator=generator)
    return logits.to(dtype), torch.randint(words, (3, tokens), generator=generator)


def exact(logits, ids):
    shares = logits[:, :-1].double().log_softmax(dim=-1)
    return -shares.gather(2, ids[:, 1:, None])[..., 0]


@pytest.mark.parametrize("kernels", ["torch", "numba"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 4.0, 60.0])
@pytest.mark.parametrize("words", [1, 63, 64, 513, 5000])
def test_the_loss_is_that_of_float64(kernels, dtype, size, words):
    logits, ids = logits_and_ids(words, dtype, size=size)
    nll = token_nll(logits, ids, Selection(kernels))
    assert nll.dtype == torch.float64
    torch.testing.assert_close(nll, exact(logits, ids), rtol=1e-6, atol=2e-5)
    torch.testing.assert_close(nll.sum(), exact(logits, ids).sum(), rtol=1e-6, atol=1e-5)


def test_numba_is_as_exact_as_torch():
    logits, ids = logits_and_ids(49152, torch.float32, tokens=40)
    gaps = [
        (token_nll(logits, ids, Selection(kernels)) / exact(logits, ids) - 1).abs().max()
        for kernels in ("numba", "torch")
    ]
    assert gaps[0] <= gaps[1] < 1e-6


@pytest.mark.parametrize("kernels", ["torch", "numba"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(kernels, bad):
    logits, ids = logits_and_ids(70, torch.float32)
    logits[1, 2, 7] = bad
    finite = token_nll(logits, ids, Selection(kernels)).isfinite()
    assert (~finite).nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("kernels", ["torch", "numba"])
def test_words_that_are_masked_count_nothing(kernels):
    logits, ids = logits_and_ids(70, torch.float32)
    ids %= 64
    expected = token_nll(logits[..., :64], ids)
    logits[..., 64:] = -torch.inf
    nll = token_nll(logits, ids, Selection(kernels))
    torch.testing.assert_close(nll, expected, rtol=1e-6, atol=1e-6)


def test_other_dtypes_and_machines_without_numba_take_torch(without_numba):
    logits, ids = logits_and_ids(70, torch.float32)
    assert torch.equal(token_nll(logits, ids, Selection("auto")), token_nll(logits, ids))
    half = logits.half()
    assert torch.equal(token_nll(half, ids, Selection("auto")), token_nll(half, ids))
