"""The fast scan and convolution against the plain reference and against transformers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import Mamba2Config, Mamba2ForCausalLM
from transformers.models.mamba2 import modeling_mamba2

from keepset.kernels import naive
from keepset.kernels.dispatch import CONV, SCAN, mixer_modules, standing_in, torch_scans
from keepset.kernels.scan import CHUNK, causal_conv, chunk_scan


def inputs(tokens: int, groups: int, n: int = 5, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(tokens * 31 + groups)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    heads = 4
    return {
        "x": draw(2, tokens, heads, 3),
        "dt": draw(2, tokens, heads),
        "A": -draw(heads).abs() - 0.1,
        "B": draw(2, tokens, groups, n),
        "C": draw(2, tokens, groups, n),
        "D": draw(heads),
        "dt_bias": draw(heads),
        "first": draw(2, heads, 3, n),
    }


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 7, CHUNK, CHUNK + 1, 2 * CHUNK + 13])
def test_scan_is_the_recurrence(tokens: int, groups: int) -> None:
    t = inputs(tokens, groups, dtype=torch.float64)
    dt = naive.time_steps(t["dt"], t["dt_bias"], True, (0.01, 2.0))
    expected, _, state = naive.scan(
        t["x"],
        dt,
        t["A"],
        t["B"],
        t["C"],
        D=t["D"],
        initial_states=t["first"],
    )
    y, last = chunk_scan(
        t["x"], t["dt"], t["A"], t["B"], t["C"], D=t["D"], dt_bias=t["dt_bias"],
        initial_states=t["first"], dt_softplus=True, dt_limit=(0.01, 2.0),
        return_final_states=True,
    )  # fmt: skip
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(last, state, rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_the_recurrence() -> None:
    t = inputs(CHUNK + 5, 2, dtype=torch.float64)
    names = ["x", "dt", "A", "B", "C"]
    leaves = [t[name].requires_grad_() for name in names]
    y = chunk_scan(*leaves, dt_bias=t["dt_bias"], dt_softplus=True)
    weights = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
    fast = torch.autograd.grad((y * weights).sum(), leaves)
    x, dt, *rest = leaves
    step = naive.time_steps(dt, t["dt_bias"], True, (0.0, float("inf")))
    expected = torch.autograd.grad((naive.scan(x, step, *rest)[0] * weights).sum(), leaves)
    for name, one, other in zip(names, fast, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_convolution(tokens: int) -> None:
    x, weight, bias = torch.randn(2, 6, tokens), torch.randn(6, 4), torch.randn(6)
    expected = F.silu(F.conv1d(x, weight[:, None], bias, padding=3, groups=6)[..., :tokens])
    torch.testing.assert_close(causal_conv(x, weight, bias, "silu"), expected)
    with pytest.raises(ValueError, match="activation"):
        causal_conv(x, weight, bias, "gelu")


@pytest.mark.parametrize("groups", [1, 2])
def test_model_with_our_scan_equals_transformers(groups: int) -> None:
    torch.manual_seed(0)
    config = Mamba2Config(
        hidden_size=16, num_hidden_layers=2, expand=2, head_dim=8, num_heads=4, state_size=12,
        n_groups=groups, vocab_size=40, chunk_size=16, conv_kernel=4,
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = Mamba2ForCausalLM(config).eval()
    ids = torch.randint(40, (2, CHUNK + 9))
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        before = getattr(modeling_mamba2, SCAN), getattr(modeling_mamba2, CONV)
        with torch_scans(model):
            assert getattr(modeling_mamba2, SCAN) is chunk_scan
            output = model(input_ids=ids, use_cache=False).logits
            output_in_training = model.train()(input_ids=ids, use_cache=False).logits
    assert (getattr(modeling_mamba2, SCAN), getattr(modeling_mamba2, CONV)) == before
    assert mixer_modules(model) == [modeling_mamba2]
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output_in_training, expected, rtol=1e-5, atol=1e-5)


def test_what_stands_in_already_stays() -> None:
    config = Mamba2Config(
        hidden_size=16, num_hidden_layers=1, expand=2, head_dim=8, num_heads=4, state_size=4,
        n_groups=1, vocab_size=40, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = Mamba2ForCausalLM(config)

    def rule(*arguments: object, **named: object) -> None:
        raise AssertionError

    with standing_in(mixer_modules(model), {SCAN: rule}), torch_scans(model):
        assert getattr(modeling_mamba2, SCAN) is rule
        assert getattr(modeling_mamba2, CONV) is causal_conv
