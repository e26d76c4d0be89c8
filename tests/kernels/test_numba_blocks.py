"""Kernels of whole blocks by numba against the same steps in torch, with masks."""

import pytest
import torch
from torch.nn import functional as F
from transformers.activations import ACT2FN

from keepset.errors import KernelError
from keepset.rules.masks import top_mask

numba_ffn = pytest.importorskip("keepset.kernels.numba_ffn", exc_type=KernelError)

CLOSE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-2},
}
# d, n: odd, fewer than a set of rows, and more than one.
SIZES = [(1, 1), (5, 7), (9, 33), (16, 70)]


def numbers(*shape, seed, dtype, values=None):
    generator = torch.Generator().manual_seed(seed)
    if values is not None:
        return torch.tensor(values)[torch.randint(len(values), shape, generator=generator)].to(
            dtype
        )
    return torch.randn(shape, generator=generator).to(dtype)


def linear(x, weight, bias):
    """In float32, rounded once, as the kernels round."""
    return F.linear(x.float(), weight.float(), bias.float()).to(x.dtype)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(("d", "n"), SIZES)
@pytest.mark.parametrize("act", ["silu", "relu"])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("by_gate", [True, False])
def test_a_block_of_two_choices(dtype, d, n, act, gated, by_gate):
    x = numbers(2, 1, d, seed=0, dtype=dtype, values=[0.0, 1.0, -1.0, 0.5])  # ties
    ups = [numbers(n, d, seed=1 + i, dtype=dtype) for i in range(1 + gated)]
    biases = [numbers(n, seed=3 + i, dtype=dtype) for i in range(1 + gated)]
    down, bias = numbers(d, n, seed=5, dtype=dtype), numbers(d, seed=6, dtype=dtype)
    k, k2 = (d + 1) // 2, (n + 1) // 2
    rows = torch.cat([up.T for up in ups], dim=1).contiguous()
    first = numba_ffn.TokenDown(rows, k, None, torch.cat(biases))
    second = numba_ffn.TokenDown(down.T.contiguous(), k2, None, bias)
    block = numba_ffn.TokenBlock(first, second, [0, n][: 1 + gated], act, by_gate)
    held = x * top_mask(x.abs().float(), k)
    gate = ACT2FN[act](linear(held, ups[0], biases[0]))
    h = gate * linear(held, ups[1], biases[1]) if gated else gate
    h = h * top_mask((gate if by_gate else h).abs().float(), k2)
    for _ in range(2):  # nothing of the first call is left
        out, wrong = block(x)
        assert not wrong
        torch.testing.assert_close(out, linear(h, down, bias), **CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(("d", "n"), SIZES)
@pytest.mark.parametrize("act", ["silu", "relu"])
@pytest.mark.parametrize("least", [None, 0.25])
def test_a_block_whose_gate_chooses(dtype, d, n, act, least):
    x = numbers(2, 1, d, seed=0, dtype=dtype, values=[0.0, 1.0, -1.0, 0.5])
    gate, up = (numbers(n, d, seed=seed, dtype=dtype) for seed in (1, 2))
    down = numbers(d, n, seed=3, dtype=dtype)
    bias, gate_bias, up_bias = (
        numbers(size, seed=4 + i, dtype=dtype) for i, size in enumerate((d, n, n))
    )
    k = (n + 1) // 2
    rows = down.T.contiguous()
    kernel = numba_ffn.TokenDown(rows, k if least is None else least, None, bias)
    block = numba_ffn.GateBlock((gate, gate_bias), (up, up_bias), kernel, act)
    gates = ACT2FN[act](linear(x, gate, gate_bias))
    sizes = gates.abs().float()
    mask = top_mask(sizes, k) if least is None else sizes >= least
    h = gates * linear(x, up, up_bias) * mask
    for _ in range(2):
        out, wrong = block(x)
        assert not wrong
        torch.testing.assert_close(out, linear(h, down, bias), **CLOSE[dtype])


def test_up_and_down_of_what_the_gate_leaves_out_are_not_read():
    gate = torch.tensor([[2.0], [1.0], [-3.0]])
    up, rows = torch.ones(3, 1), torch.ones(3, 1)
    up[1], rows[1], up[2], rows[2] = (torch.nan,) * 4  # the second by size; ReLU zeroes the third
    kernel = numba_ffn.TokenDown(rows, 1, None, None)
    out, wrong = numba_ffn.GateBlock((gate, None), (up, None), kernel, "relu")(torch.ones(1))
    assert not wrong
    assert out.tolist() == [2.0]


def test_the_site_of_a_nan_is_told():
    weights = torch.ones(3, 4), torch.ones(4, 3)
    first, down = (numba_ffn.TokenDown(w, 2, None, None) for w in weights)
    block = numba_ffn.TokenBlock(first, down, [0], "relu", False)
    assert block(torch.tensor([1.0, torch.nan, 0.0]))[1] == 1
    weights[0][:] = torch.nan
    assert block(torch.ones(3))[1] == 2
    gate = numba_ffn.GateBlock(
        (weights[0].T.contiguous(), None), (torch.ones(4, 3), None), down, "silu"
    )
    assert gate(torch.ones(3))[1] == 2


def test_silu_is_torchs():
    special = torch.tensor([0.0, torch.inf, -torch.inf, torch.nan])
    x = torch.cat([torch.linspace(-120, 120, 4001), special])
    eye = torch.eye(1)
    one = numba_ffn.TokenDown(eye, 0.0, None, None)
    block = numba_ffn.GateBlock((eye, None), (eye, None), one, "silu")
    for value in x[:-4]:
        out, _ = block(value[None])
        torch.testing.assert_close(out, F.silu(value[None]) * value, rtol=1e-6, atol=1e-30)
    assert block(torch.tensor([-torch.inf]))[1] == 2  # NaN, as in torch
