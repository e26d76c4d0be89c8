"""Exact top-k per window: the same indices as the plain reference, always."""

from __future__ import annotations

import pytest
import torch
from checks import DEVICE, DTYPES, check_any_float, check_window_topk, kernels

from keepset.errors import KernelError
from keepset.kernels import naive
from keepset.kernels.triton_topk import window_topk

K = kernels()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(
    ("rows", "n", "window", "kept"),
    [(5, 150, 2, 15), (3, 150, 1, 1), (4, 128, 4, 128), (7, 33, 3, 0), (1, 1, 9, 1), (0, 9, 1, 2)],
)
def test_ties_go_to_the_lowest_index(draw, rows, n, window, kept, dtype) -> None:
    if rows:
        check_window_topk(K, draw, kept, rows=rows, n=n, window=window, dtype=dtype)
    else:
        assert window_topk(torch.zeros(0, n, device=DEVICE), kept).shape == (0, kept)


def test_norms(draw) -> None:
    check_window_topk(K, draw, 20, norms=True)


def test_any_float(draw) -> None:
    check_any_float(K, draw)


def test_every_score_is_zero() -> None:
    h = torch.tensor([[0.0, -0.0] * 20], device=DEVICE)
    assert window_topk(h, 3).tolist() == [[0, 1, 2]]


def test_rows_that_lie_apart(draw) -> None:
    h = torch.randint(-3, 4, (4, 12), generator=draw).float().to(DEVICE)
    for view in (h[::2], h.t()[:3], h[1:3, 3:]):
        assert window_topk(view, 3).tolist() == naive.window_topk(view, 3).tolist()


def test_refusals() -> None:
    h = torch.zeros(2, 9, device=DEVICE)
    for message, arguments in {
        "cannot keep 10 of 9": {"k": 10},
        "window must be": {"k": 1, "window": 0},
        "norms has shape": {"k": 1, "norms": h[0, 1:]},
    }.items():
        with pytest.raises(KernelError, match=message):
            window_topk(h, **arguments)
    with pytest.raises(KernelError, match="at most 65536"):
        window_topk(torch.zeros(1, 65_537, device=DEVICE), 1)
