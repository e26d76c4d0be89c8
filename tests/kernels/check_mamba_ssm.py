"""mamba-ssm's Triton functions against our references. Not a part of `make test`: where mamba-ssm
can be imported, transformers calls it for CPU tensors too. `make test-mamba-ssm` runs this file.
"""

from __future__ import annotations

import contextlib
import os
import sys
import types

import pytest
import torch

if torch.cuda.is_available():
    os.environ["TRITON_F32_DEFAULT"] = "ieee"  # products as exact as the references
else:
    # One autotuning configuration each, and nothing that asks for a device.
    os.environ["MAMBA_DETERMINISTIC"] = "1"
    sys.modules["selective_scan_cuda"] = types.ModuleType("selective_scan_cuda")
    torch.cuda.device = lambda _: contextlib.nullcontext()  # type: ignore[assignment,misc]

from checks import DEVICE, assert_close, tokens
from mamba_ssm.ops.triton.selective_state_update import selective_state_update
from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
from transformers.models.mamba2 import modeling_mamba2

from decoding import prompt
from keepset.hold.cut import prune_states
from keepset.kernels import naive
from keepset.kernels.dispatch import SCAN, STEP
from keepset.kernels.mixers import MAMBA_SSM, mixer_kernels, provider
from keepset.kernels.selection import Selection
from keepset.kernels.triton_state import state_step
from keepset.settings import Kernels
from keepset.sites.state import find_state_sites
from state_models import shape


def per_head(vector: torch.Tensor, *shape: int) -> torch.Tensor:
    return vector.view(-1, *[1] * len(shape)).expand(-1, *shape)


@pytest.mark.parametrize("n", [128, 38, 13, 1])
def test_state_update(draw, n: int) -> None:
    batch, groups, heads, head_dim = 1, 2, 2, 8
    state = tokens(draw, batch, heads, head_dim, n)
    x, dt = tokens(draw, batch, heads, head_dim), tokens(draw, batch, heads)
    A, D, bias = -tokens(draw, heads).abs() - 0.1, tokens(draw, heads), tokens(draw, heads)
    B, C = tokens(draw, batch, groups, n), tokens(draw, batch, groups, n)
    z = tokens(draw, batch, heads, head_dim)
    given = {"D": D, "dt_bias": bias, "dt_softplus": True, "z": z}
    expected, new = naive.state_step(state, x, dt, A, B, C, **given)
    theirs, ours = state.clone(), state.clone()
    y = selective_state_update(
        theirs, x, dt[..., None].expand(-1, -1, head_dim), per_head(A, head_dim, n), B, C,
        D=per_head(D, head_dim), dt_bias=per_head(bias, head_dim), dt_softplus=True, z=z,
    )  # fmt: skip
    assert_close(y, expected, torch.float32)
    assert_close(theirs, new, torch.float32)
    assert_close(state_step(ours, x, dt, A, B, C, **given), y, torch.float32)
    assert_close(ours, theirs, torch.float32)


@pytest.mark.parametrize("n", [64, 38])
def test_chunk_scan(draw, n: int) -> None:
    batch, length, groups, heads, head_dim = 1, 40, 1, 2, 8
    x, dt = tokens(draw, batch, length, heads, head_dim), tokens(draw, batch, length, heads)
    A, D, bias = -tokens(draw, heads).abs() - 0.1, tokens(draw, heads), tokens(draw, heads)
    B, C = tokens(draw, batch, length, groups, n), tokens(draw, batch, length, groups, n)
    first = tokens(draw, batch, heads, head_dim, n)
    steps = naive.time_steps(dt, bias, True, (0.0, float("inf")))
    expected, _, last = naive.scan(x, steps, A, B, C, D=D, initial_states=first)
    y, state = mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size=32, D=D, dt_bias=bias, dt_softplus=True, initial_states=first,
        return_final_states=True,
    )  # fmt: skip
    assert y.device.type == DEVICE
    # Their products over a chunk round more than 1e-5 allows; 5e-5 still tells a wrong term.
    assert (y - expected).norm() <= 5e-5 * expected.norm()
    assert (state - last).norm() <= 5e-5 * last.norm()


@pytest.mark.parametrize("n", [16, 5])
def test_inside_a_model(tiny_model, n: int) -> None:
    """Scan and step by mamba-ssm, complete and with channels cut, against torch's."""
    model = tiny_model("mamba2", **shape("mamba2", groups=2, n_state=16)).to(DEVICE)
    bound = {provider(modeling_mamba2, name) for name in (SCAN, STEP)}
    assert bound == {MAMBA_SSM}, "transformers could not import all that mamba-ssm needs"
    if n < 16:
        kept = torch.arange(16) < n
        prune_states(
            model, {site.key: kept.repeat(site.n_groups, 1) for site in find_state_sites(model)}
        )
    ids, given = prompt(40, device=DEVICE), {"do_sample": False, "eos_token_id": None}

    def decoded() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            return model(input_ids=ids).logits, model.generate(ids, max_new_tokens=12, **given)

    # On a CPU a choice by name is refused, and interpreted functions are those that are bound.
    theirs = Selection(Kernels(scan="mamba-ssm", state="mamba-ssm"))
    chosen = mixer_kernels(model, theirs) if DEVICE == "cuda" else contextlib.nullcontext()
    with chosen as ran:
        logits, found = decoded()
    assert ran in (None, {"scan": MAMBA_SSM, "state": MAMBA_SSM})
    with mixer_kernels(model, Selection("torch")):
        expected, expected_tokens = decoded()
    assert (logits - expected).norm() <= 5e-5 * expected.norm()  # as in `test_chunk_scan`
    assert found.equal(expected_tokens)
