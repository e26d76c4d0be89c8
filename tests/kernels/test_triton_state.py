"""One token through the state, against the plain reference and the whole recurrence."""

from __future__ import annotations

import pytest
import torch
from checks import DEVICE, DTYPES, assert_close, check_state, kernels, tokens
from transformers.models.mamba2.modeling_mamba2 import mamba2_selective_state_update

from keepset.errors import KernelError
from keepset.kernels import naive
from keepset.kernels.triton_state import StateConfig, new_state, state_step

K = kernels()


@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize(
    ("batch", "groups", "n", "head_dim"),
    [(1, 1, 128, 16), (1, 1, 64, 8), (2, 1, 38, 7), (1, 3, 13, 5), (1, 2, 1, 3), (0, 1, 4, 4)],
)
def test_any_number_of_channels(draw, batch, groups, n, head_dim, by_channel) -> None:
    if batch:
        check_state(
            K, draw, batch=batch, groups=groups, n=n, head_dim=head_dim, by_channel=by_channel
        )
    else:
        state, x = new_state(0, 2, head_dim, n), torch.zeros(0, 2, head_dim)
        bc = torch.zeros(0, groups, n)
        assert state_step(state, x, x[..., 0], -torch.ones(2), bc, bc).shape == x.shape


@pytest.mark.parametrize("by_channel", [False, True])
def test_a_number_of_channels_for_each_group(draw, by_channel) -> None:
    check_state(K, draw, groups=3, ragged=True, by_channel=by_channel)


def test_without_what_may_be_left_out(draw) -> None:
    check_state(K, draw, plain=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
# Arithmetic is float32 in any case, so the interpreter takes a bfloat16 state too.
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_dtypes(draw, dtype, state_dtype) -> None:
    check_state(K, draw, dtype=dtype, state_dtype=state_dtype)


def test_channels_that_are_not_kept_stay(draw) -> None:
    state = torch.full((1, 2, 4, 6), float("nan"), device=DEVICE)
    state[..., :2] = 1.0
    x, dt = tokens(draw, 1, 2, 4), tokens(draw, 1, 2).abs()
    bc = tokens(draw, 1, 1, 6)
    kept = torch.tensor([2], dtype=torch.int32, device=DEVICE)
    y = state_step(state, x, dt, -dt[0], bc, bc, kept=kept)
    assert not y.isnan().any()
    assert state[..., 2:].isnan().all()
    assert (state[..., :2] != 1.0).all()
    nothing = state_step(state, x, dt, -dt[0], bc, bc, kept=kept * 0, D=dt[0])
    assert_close(nothing, x * dt[0, :, None], torch.float32)


def test_steps_follow_the_recurrence(draw) -> None:
    x, dt = tokens(draw, 1, 3, 2, 3), tokens(draw, 1, 3, 2)
    A, bias = -tokens(draw, 2).abs(), tokens(draw, 2)
    B, C = tokens(draw, 1, 3, 1, 7), tokens(draw, 1, 3, 1, 7)
    steps = naive.time_steps(dt, bias, True, (0.0, float("inf")))
    expected, _, last = naive.scan(x, steps, A, B, C)
    state = new_state(1, 2, 3, 7, device=DEVICE)
    for t in range(3):
        y = state_step(
            state, x[:, t], dt[:, t], A, B[:, t], C[:, t], dt_bias=bias, dt_softplus=True,
            config=StateConfig(channels=4, dims=2),
        )  # fmt: skip
        assert_close(y, expected[:, t], torch.float32)
    assert_close(state, last, torch.float32)


def test_takes_what_transformers_hands_over(draw) -> None:
    """Per-head vectors come expanded to the head's dimensions."""
    batch, heads, head_dim, n = 2, 4, 3, 10
    x = tokens(draw, batch, heads, head_dim)
    dt = tokens(draw, batch, heads)[..., None].expand(-1, -1, head_dim)
    A = (-tokens(draw, heads).abs())[:, None, None].expand(-1, head_dim, n)
    B, C = tokens(draw, batch, 2, n), tokens(draw, batch, 2, n)
    D, bias = (tokens(draw, heads)[:, None].expand(-1, head_dim) for _ in range(2))
    state = tokens(draw, batch, heads, head_dim, n)
    other = state.clone()
    with torch.no_grad():
        expected = mamba2_selective_state_update.__wrapped__(
            other, x, dt, A, B, C, D, dt_bias=bias, dt_softplus=True
        )
    y = state_step(state, x, dt, A, B, C, D=D, dt_bias=bias, dt_softplus=True)
    assert_close(y, expected, torch.float32)
    assert_close(state, other, torch.float32)


def test_tiny_steps_keep_their_digits(draw) -> None:
    """softplus(-17) = 4e-8: 1 + e would lose it."""
    state = new_state(1, 1, 2, 3, device=DEVICE)
    x, bc = tokens(draw, 1, 1, 2), tokens(draw, 1, 1, 3)
    dt = torch.full((1, 1), -17.0, device=DEVICE)
    expected, new = naive.state_step(state, x, dt, -dt[0] * 0 - 1, bc, bc, dt_softplus=True)
    assert_close(state_step(state, x, dt, -dt[0] * 0 - 1, bc, bc, dt_softplus=True), expected,
                 torch.float32)  # fmt: skip
    assert_close(state, new, torch.float32)


def test_refusals(draw) -> None:
    state = new_state(1, 4, 3, 5, device=DEVICE)
    x, dt, A = tokens(draw, 1, 4, 3), tokens(draw, 1, 4), -tokens(draw, 4).abs()
    bc = tokens(draw, 1, 2, 5)
    varying = tokens(draw, 1, 4, 3)
    kept = torch.tensor([1, 2], device=DEVICE)
    refused = [
        ("cannot share 3 groups", {"B": tokens(draw, 1, 3, 5)}),
        ("C has shape", {"C": tokens(draw, 1, 2, 4)}),
        ("x is not contiguous", {"x": tokens(draw, 1, 3, 4).transpose(1, 2)}),
        ("differs within a head", {"dt": varying}),
        ("must be (.*) int32", {"kept": kept}),
        ("state is torch.float64", {"state": state.double()}),
    ]
    for message, changed in refused:
        with pytest.raises(KernelError, match=message):
            state_step(**{"state": state, "x": x, "dt": dt, "A": A, "B": bc, "C": bc} | changed)
