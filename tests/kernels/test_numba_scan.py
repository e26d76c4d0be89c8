"""The recurrence that numba compiles against the plain paths in torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from keepset.errors import ModelError
from keepset.kernels import naive, numba_scan
from keepset.kernels.numba_scan import Choice, Inputs
from keepset.kernels.scan import CHUNK, causal_conv, chunk_scan

Scan = dict[str, Tensor]
OPTIONS = {"dt_softplus": True, "dt_limit": (0.01, 2.0)}


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """Gradients are left to torch: with them nothing here would be compiled."""
    with torch.no_grad():
        yield


def inputs(tokens: int, groups: int, n: int = 7, head_dim: int = 5, batch: int = 2) -> Scan:
    generator = torch.Generator().manual_seed(tokens * 31 + groups)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    heads = 4
    return {
        "hidden_states": draw(batch, tokens, heads, head_dim),
        "dt": draw(batch, tokens, heads),
        "A": -draw(heads).abs() - 0.1,
        "B": draw(batch, tokens, groups, n),
        "C": draw(batch, tokens, groups, n),
        "D": draw(heads),
        "dt_bias": draw(heads),
        "initial_states": draw(batch, heads, head_dim, n),
    }


def states(given: Scan) -> Tensor:
    """Every state from the empty one: (batch, tokens, heads, head_dim, n)."""
    step = naive.time_steps(given["dt"], given["dt_bias"], True, (0.01, 2.0))
    return naive.scan(given["hidden_states"], step, given["A"], given["B"], given["C"])[1]


def read(given: Scan) -> Inputs:
    order = ("hidden_states", "dt", "A", "B", "C", "D", "dt_bias")
    return Inputs.of(*(given[name] for name in order), **OPTIONS)  # type: ignore[arg-type]


@pytest.mark.parametrize("without", [None, "D", "initial_states"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("tokens", [0, 1, 7, CHUNK, CHUNK + 1])
def test_scan_is_that_of_torch(tokens: int, groups: int, without: str | None) -> None:
    given = {name: part for name, part in inputs(tokens, groups).items() if name != without}
    y, last = numba_scan.scan(**given, return_final_states=True, **OPTIONS)  # type: ignore[arg-type]
    if not tokens:
        assert y.shape == given["hidden_states"].shape
        return
    exact = {name: part.double() for name, part in given.items()}
    expected = chunk_scan(**exact, return_final_states=True, **OPTIONS)  # type: ignore[arg-type]
    for found, one in zip((y, last), expected, strict=True):
        torch.testing.assert_close(found, one.float(), rtol=1e-5, atol=1e-5)
    alone = numba_scan.scan(**given, **OPTIONS)  # type: ignore[arg-type]
    assert isinstance(alone, Tensor)
    assert torch.equal(alone, y)


@pytest.mark.parametrize(("n", "head_dim"), [(1, 1), (4, 8), (13, 3), (64, 64)])
def test_any_size_is_computed(n: int, head_dim: int) -> None:
    given = inputs(9, 2, n, head_dim)
    y = numba_scan.scan(**given, **OPTIONS)  # type: ignore[arg-type]
    torch.testing.assert_close(y, chunk_scan(**given, **OPTIONS), rtol=1e-5, atol=1e-4)  # type: ignore[arg-type]
    expected = states(given).square().sum(dim=3).unflatten(2, (2, 2)).sum(dim=3)
    torch.testing.assert_close(
        numba_scan.channel_sizes(read(given)), expected, rtol=1e-5, atol=1e-5
    )


def test_half_precision_is_computed_in_float32() -> None:
    given = {name: part.bfloat16() for name, part in inputs(40, 2).items()}
    exact = {name: part.float() for name, part in given.items()}
    y = numba_scan.scan(**given, **OPTIONS)  # type: ignore[arg-type]
    torch.testing.assert_close(y, chunk_scan(**exact, **OPTIONS), rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]
    x, weight, bias = torch.randn(2, 6, 9), torch.randn(6, 4), torch.randn(6)
    low = [part.bfloat16() for part in (x, weight, bias)]
    found = numba_scan.convolution(*low, "silu")
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, causal_conv(*(part.float() for part in low), "silu").bfloat16())


def test_gradients_and_float64_are_left_to_torch() -> None:
    given = inputs(5, 1)
    with torch.enable_grad():
        given["B"].requires_grad_()
        y = numba_scan.scan(**given, **OPTIONS)  # type: ignore[arg-type]
        assert isinstance(y, Tensor)
        assert torch.autograd.grad(y.sum(), given["B"])[0].abs().sum() > 0
    double = {name: part.detach().double() for name, part in given.items()}
    assert torch.equal(numba_scan.scan(**double, **OPTIONS), chunk_scan(**double, **OPTIONS))  # type: ignore[arg-type]
    x, weight = torch.randn(1, 3, 5).double(), torch.randn(3, 4).double()
    assert torch.equal(numba_scan.convolution(x, weight), causal_conv(x, weight))


def test_nan_reaches_the_output() -> None:
    given = inputs(6, 1)
    given["hidden_states"][1, 2, 3] = torch.nan
    y = numba_scan.scan(**given, **OPTIONS)  # type: ignore[arg-type]
    assert isinstance(y, Tensor)
    lost = torch.zeros(2, 6, 4, dtype=torch.bool)
    lost[1, 2:, 3] = True
    assert torch.equal(y.isnan().all(dim=3), lost)
    assert torch.equal(y.isnan().any(dim=3), lost)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_convolution_is_that_of_torch(tokens: int, activation: str | None) -> None:
    x, weight, bias = torch.randn(2, tokens, 6).transpose(1, 2), torch.randn(6, 4), torch.randn(6)
    for offset in (bias, None):
        found = numba_scan.convolution(x, weight, offset, activation)
        torch.testing.assert_close(found, causal_conv(x, weight, offset, activation))
    with pytest.raises(ValueError, match="activation"):
        numba_scan.convolution(x, weight, bias, "gelu")


def test_ties_go_to_the_lowest_channel() -> None:
    given = inputs(6, 1)
    for name in ("B", "C"):
        given[name][:] = 1  # so that all channels are one
    y = numba_scan.held_windows(
        read(given), torch.ones(2, 6, 1, 7), Choice(3, 2, 0, False, True, True), None, None
    )
    for name in ("B", "C"):
        given[name][..., 3:] = 0
    del given["initial_states"]
    torch.testing.assert_close(y, chunk_scan(**given, **OPTIONS), rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("window", [1, 4])
def test_a_score_that_is_no_number_is_refused(window: int) -> None:
    given, weights = inputs(6, 1), torch.ones(2, 6, 1, 7)
    weights[1, 5, 0, 2] = torch.nan
    choice = Choice(3, window, 0, False, False, by_size=True)
    with pytest.raises(ModelError, match="NaN among the scores"):
        numba_scan.held_windows(read(given), weights, choice, None, None)
