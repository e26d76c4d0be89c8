"""Kernels that are wrong on purpose: for each mistake a check must fail.

A mistake is made in the source. The changed files are imported as a package of their own and go
through the checks that the real kernels pass.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from checks import (
    DEVICE,
    Kernels,
    check_any_float,
    check_best,
    check_compacted,
    check_decode,
    check_gemv,
    check_marks,
    check_shared_decode,
    check_shared_gemm,
    check_state,
    check_window_topk,
    kernels,
)

import keepset.kernels
from keepset.kernels import launch

SOURCES = sorted(Path(keepset.kernels.__path__[0]).glob("triton_*.py"))
Check = Callable[[Kernels, torch.Generator], None]

decode = partial(check_decode, rows=1, n=90, d=72)
decode_rows = partial(check_decode, rows=3, n=90, d=72)
gate = partial(check_decode, rows=1, n=90, d=40, gated=True, choose="gate", act="silu")
shared_decode = partial(check_shared_decode, kept=41, rows=1, n=90, d=72, act="silu")
shared_gated = partial(check_shared_decode, kept=41, rows=1, n=90, d=40, gated=True, act="gelu")
gemv = partial(check_gemv, rows=1, n_in=90, outs=72)
gemv_rows = partial(check_gemv, rows=3, n_in=90, outs=72)
gemv_gated = partial(check_gemv, rows=1, n_in=90, outs=72, act="silu", gated=True)
gemv_top = partial(check_gemv, rows=3, n_in=90, choice="k", kept=17)
gemv_set = partial(check_gemv, rows=2, n_in=90, choice="set", kept=17)
best = partial(check_best, kept=13, rows=2, n=90)
shared_gemm = partial(check_shared_gemm, rows=33, n=90, act="silu")
compacted = partial(check_compacted, rows=2, n=90, gated=True)
overflow = partial(check_compacted, capacity=4, rows=2, n=90, natural=True)
top = partial(check_window_topk, kept=20, n=90)
state = partial(check_state, batch=1, groups=1)
ragged = partial(check_state, batch=1, groups=2, ragged=True)

# (file, what is written there, what is written instead, the check that must notice). None of them
# leaves the memory that the kernel was given: that could end the process before a check fails.
MISTAKES = [
    # the dense projection
    ("device", "range(0, D, BLOCK_D", "range(0, D - BLOCK_D, BLOCK_D", decode),
    ("device", "tl.sum(partial, axis=1)", "tl.max(partial, axis=1)", decode),
    ("device", "acc = tl.dot(w, v, acc, ", "acc = tl.dot(w, v, ", decode_rows),
    ("device", "b[None, :] * x_row", "b[None, :] * 0", decode_rows),
    ("device", "tl.where(x < 0, 0.0, x)", "tl.where(x < 0, x, x)", decode),
    ("decode", "j = tile * TILE + tl.arange", "j = tile * (TILE + 9) + tl.arange", decode),
    ("decode", "u += tl.load(up_bias + j,", "u -= tl.load(up_bias + j,", decode),
    # the choice by score
    ("device", "(score < threshold) == 0", "(score < 2 * threshold) == 0", decode),
    ("device", "(score < threshold) == 0", "(score > threshold) == 0", gemv),
    ("device", "b[None, :] * keep_row", "b[None, :] * 0", gemv_top),
    ("device", "score *= tl.load(norms", "score += tl.load(norms", partial(gemv, norms=True)),
    ("ffn", "np.float32(math.inf)", "np.float32(-math.inf)",
     partial(check_decode, rows=1, act="relu", zero=True)),
    # neurons that are kept
    ("decode", "h * u, 0.0)", "h + u, 0.0)", gate),
    ("decode", "tl.where(kept, h * u, 0.0)", "h * u", partial(gate, rows=3)),
    ("decode", "tl.max(kept.to(tl.int32), axis=1) > 0", "tl.min(kept.to(tl.int32), axis=1) > 0",
     partial(gate, rows=3)),
    ("decode", "            h *= u\n", "            h += u\n", shared_gated),
    ("decode", "j = tl.load(index + j, mask=live, other=0)",
     "j = tl.maximum(tl.load(index + j, mask=live, other=0) - 1, 0)", shared_decode),
    ("decode", "tl.store(arrivals + a, tl.zeros", "tl.store(arrivals + a, 1 + tl.zeros", decode),
    # kept rows, input by input
    ("gemv", "stop = tl.minimum(share * size + size, n_in)",
     "stop = tl.minimum(share * size + size, n_in - 1)", gemv),
    ("gemv", "tl.range(share * size, stop, BLOCK_IN",
     "tl.range(share * size, stop - BLOCK_IN, BLOCK_IN", gemv),
    ("gemv", "tl.static_range(SHARES)", "tl.static_range(1, SHARES)", gemv),
    ("gemv", "== SHARES - 1", "== SHARES", gemv),
    ("gemv", "tl.store(arrivals + block, 0)", "tl.store(arrivals + block, 1)", gemv),
    ("gemv", "return torch.zeros(cdiv", "return torch.ones(cdiv", gemv),
    ("gemv", "j[:, None] * w_row", "(j[:, None] ^ 1) * w_row", gemv),
    ("gemv", "v = tl.where(kept, v, 0.0)", "v = v", gemv_rows),
    ("gemv", "tl.max(kept.to(tl.int32), axis=1)", "tl.min(kept.to(tl.int32), axis=1)", gemv_rows),
    ("gemv", "tl.dot(tl.trans(v), w, acc,", "tl.dot(tl.trans(v), w,", gemv_rows),
    ("gemv", "b[None, :] * x_row", "b[None, :] * 0", gemv_rows),
    ("gemv", "j = tl.load(index + place", "j = place + 0 * tl.load(index + place", gemv_set),
    ("gemv", "pointers + n_out", "pointers", gemv_gated),
    ("gemv", "sums + n_out, acc_up", "sums + n_out, acc", gemv_gated),
    ("gemv", "offsets + n_out, written", "offsets, written", gemv_gated),
    ("gemv", "y *= _finished(acc_up, bias, c + n_out", "y *= _finished(acc_up, bias, c",
     gemv_gated),
    ("gemv", "y = activate(y, ACT)", "y = y", gemv_gated),
    ("gemv", "y += tl.load(bias + c,", "y += 2 * tl.load(bias + c,", decode),
    # exact top-k
    ("topk", "<= wanted", "< wanted", top),
    ("device", "0x7FFFFFFF, key)", "0x7FFFFFFF, key & -2)", check_any_float),
    ("topk", "key >= higher", "key > higher", check_marks),
    ("topk", "reached >= k, 0", "reached < k, 0", check_marks),
    ("topk", "(30 - LOW, -1, -1)", "(30 - LOW, 22, -1)", check_marks),
    ("topk", "torch.float32: 0", "torch.float32: 9", check_any_float),
    ("topk", "place = tl.cumsum(keep.to(tl.int32), axis=0) - 1",
     "place = (k - tl.cumsum(keep.to(tl.int32), axis=0)) % k", top),
    ("topk", "tl.minimum(first + window, tokens)", "tl.minimum(first + window, tokens - 1)", top),
    ("topk", "score *= tl.load(norms", "score += tl.load(norms", partial(top, norms=True)),
    ("topk", "keep.to(tl.int8), mask", "live.to(tl.int8), mask", best),
    # many tokens
    ("prefill", "for start in range(0, D, BLOCK_D)",
     "for start in range(0, D - BLOCK_D, BLOCK_D)", shared_gemm),
    ("prefill", "for start in range(0, K, BLOCK_K)", "for start in range(BLOCK_K, K, BLOCK_K)",
     shared_gemm),
    ("prefill", "(program % width) // size", "(program % width) // GROUP",
     partial(check_shared_gemm, rows=70)),
    ("prefill", "h *= activate(g, ACT)", "h *= g", partial(shared_gemm, gated=True)),
    ("prefill", "place = tl.cumsum(kept, axis=1) - kept", "place = tl.cumsum(kept, axis=1)",
     compacted),
    ("prefill", "j = tl.broadcast_to(j[None, :]",
     "j = tl.broadcast_to(j[None, :] ^ 1", compacted),
    ("prefill", "h *= u\n        y +=", "h += u\n        y +=", compacted),
    ("prefill", "if tl.max(full.to(tl.int32), axis=0) > 0:", "if total < 0:", overflow),
    ("prefill", "tl.where(full, 0, held)", "tl.minimum(held, CAPACITY)", overflow),
    ("prefill", "for start in range(0, TILE, BLOCK_K)",
     "for start in range(BLOCK_K, TILE, BLOCK_K)", overflow),
    # the state
    ("state", "for start in range(0, channels, BLOCK_N)",
     "for start in range(0, channels - BLOCK_N, BLOCK_N)", state),
    ("state", "h = h * decay + written", "h = h + decay * written", state),
    ("state", "y += h * r", "y += h * b", state),
    ("state", "group = head // heads_per_group", "group = head % 2", ragged),
    ("state", "index + group * n + c", "index + c", ragged),
    ("state", "tl.minimum(tl.load(kept + group), n)", "tl.maximum(tl.load(kept + group) - 1, 0)",
     ragged),
    ("state", "tl.store(pointers, h.to(state", "tl.store(pointers, 0 * h.to(state", state),
    ("state", "total += v * tl.load(D", "total += tl.load(D", state),
    ("state", "tl.minimum(tl.maximum(step, dt_min), dt_max)", "tl.maximum(step, dt_min)", state),
]  # fmt: skip


@pytest.fixture
def draw() -> torch.Generator:
    """The same numbers in every run: whether a mistake is noticed is no matter of luck."""
    return torch.Generator().manual_seed(20)


@pytest.fixture
def mutant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], Kernels]:
    """Import the kernels with one of their files changed."""

    def workspace(shape: tuple[int, ...], dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
        # An index that nobody wrote would end the process, not the test.
        fill = float("nan") if dtype.is_floating_point else 0
        return torch.full(shape, fill, dtype=dtype, device=like.device)

    monkeypatch.setattr(launch, "workspace", workspace)

    def build(file: str, right: str, wrong: str) -> Kernels:
        package = f"mutant_{tmp_path.name}"
        (tmp_path / package).mkdir()
        for source in SOURCES:
            text = source.read_text()
            if source.stem == f"triton_{file}":
                assert text.count(right) >= 1, f"{right!r} is no longer in {source.name}"
                text = text.replace(right, wrong)
            text = text.replace("keepset.kernels.triton_", f"{package}.triton_")
            (tmp_path / package / source.name).write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        for name in [name for name in sys.modules if name.startswith(package)]:
            monkeypatch.delitem(sys.modules, name)
        importlib.invalidate_caches()
        return kernels(package)

    return build


def test_without_a_mistake_every_check_passes(draw, mutant) -> None:
    copied = mutant("device", "import triton\n", "import triton\n")
    for check in {id(check): check for *_, check in MISTAKES}.values():
        check(copied, draw)


@pytest.mark.parametrize(
    ("file", "right", "wrong", "check"),
    MISTAKES,
    ids=[f"{file}: {wrong}"[:60].replace("\n", " ") for file, _, wrong, _ in MISTAKES],
)
def test_a_mistake_is_noticed(draw, mutant, file, right, wrong, check: Check) -> None:
    if DEVICE == "cuda" and wrong == "return torch.ones(cdiv":
        pytest.skip("programs that run at the same time may have all arrived early, and be right")
    wrong_kernels = mutant(file, right, wrong)
    with pytest.raises(AssertionError):
        check(wrong_kernels, draw)
