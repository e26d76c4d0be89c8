"""Time the kernels of decoding on one GPU: every linear map of a decoder layer, and the state step.

    python benchmarks/gpu_kernels.py [--out benchmarks/gpu_kernels.csv] [--seconds 0.1]

Each call is a CUDA graph over copies of its weights that do not fit the cache; dense is torch's
product in the same rounds, for the state step the kernel with all channels. An output is compared
with the reference before it is timed. `gb_per_s`: bytes that must be read, over the time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from keepset.files.store import replacing
from keepset.kernels import naive
from keepset.kernels.dispatch import setting
from keepset.kernels.triton_gemv import new_arrivals, sparse_gemv
from keepset.kernels.triton_state import new_state, state_step
from keepset.kernels.weights import MAX_ROWS
from keepset.speed.timing import Machine, Run, in_turn, machine_of, must_agree

Maps = Mapping[str, tuple[int, int, bool]]
"""The linear maps of a layer: name -> inputs, outputs, whether outputs are gate and up."""

LAYERS: dict[str, Maps] = {
    "Qwen2.5-1.5B": {
        "query, key, value": (1536, 2048, False),
        "attention output": (1536, 1536, False),
        "gate and up": (1536, 2 * 8960, True),
        "down": (8960, 1536, False),
    },
    "Llama-3.1-8B": {
        "query, key, value": (4096, 6144, False),
        "attention output": (4096, 4096, False),
        "gate and up": (4096, 2 * 14336, True),
        "down": (14336, 4096, False),
    },
}
SPARSITIES = (0.25, 0.4, 0.5, 0.7, 0.9)
BATCHES = (1, 4, MAX_ROWS)
CHANNELS = (128, 64, 38, 13)
_MOST_COPIES = 8


def map_rows(
    maps: Maps, machine: Machine, seconds: float, dtype: torch.dtype = torch.bfloat16
) -> Iterator[dict[str, Any]]:
    """A row for each linear map, batch, sparsity and way to choose."""
    for name, (n_in, outs, gated) in maps.items():
        copies = _copies(n_in * outs * dtype.itemsize, machine)
        draw = torch.Generator(machine.device).manual_seed(0)
        size = (n_in, outs)
        rows = [
            (torch.randn(size, generator=draw, device=machine.device) / n_in**0.5).to(dtype)
            for _ in range(copies)
        ]
        stored = [weight.T.contiguous() for weight in rows]
        arrivals = new_arrivals(rows[0])
        for batch in BATCHES:
            x = torch.randn(batch, n_in, generator=draw, device=machine.device).to(dtype)
            for sparsity in SPARSITIES:
                choices: dict[str, dict[str, Any]] = {
                    "threshold": {"threshold": float(x.float().abs().quantile(sparsity))},
                    "top-k": {"k": n_in - round(sparsity * n_in)},
                }
                act = {"act": "silu", "gated": True} if gated else {}
                runs = {
                    choice: _sparse(x, rows, {**rule, **act, "arrivals": arrivals})
                    for choice, rule in choices.items()
                }
                for choice, rule in choices.items():
                    expected = naive.sparse_gemv(x, rows[0], **rule, **act).double()
                    must_agree(runs[choice](0), expected, f"{name}, {choice}, {batch} tokens")
                runs["dense"] = _dense(x, stored, gated)
                took = in_turn(runs, copies, machine, seconds)
                for choice, rule in choices.items():
                    read = int(_kept(x, rule).any(dim=0).sum()) * outs * dtype.itemsize
                    yield _row(name, f"{n_in}x{outs}", choice, sparsity, batch, took, read, x)


def state_rows(
    machine: Machine, seconds: float, batch: int = 64, heads: int = 64
) -> Iterator[dict[str, Any]]:
    """A row for each number of channels that a Mamba-2 state keeps, against all of them."""
    head_dim, most, dtype = 64, max(CHANNELS), torch.float32
    draw = torch.Generator(machine.device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, device=machine.device)

    x, dt, A = random(batch, heads, head_dim), random(batch, heads), -random(heads).abs()
    B, C = random(batch, 1, most), random(batch, 1, most)
    copies = _copies(batch * heads * head_dim * most * dtype.itemsize, machine)

    def step(n: int) -> Run:
        given = {"dtype": dtype, "device": machine.device}
        states = [new_state(batch, heads, head_dim, n, **given) for _ in range(copies)]
        b, c = B[..., :n].contiguous(), C[..., :n].contiguous()
        for state in states:
            state.copy_(random(*state.shape))
        expected, _ = naive.state_step(states[0], x, dt, A, b, c, dt_softplus=True)
        output = state_step(states[0], x, dt, A, b, c, dt_softplus=True)
        must_agree(output, expected.double(), f"state step, N = {n}")
        return lambda copy: state_step(states[copy], x, dt, A, b, c, dt_softplus=True)

    took = in_turn({f"N = {n}": step(n) for n in CHANNELS}, copies, machine, seconds)
    took["dense"] = took[f"N = {most}"]
    for n in CHANNELS:
        # Each number of the state is read and written once.
        moved = 2 * batch * heads * head_dim * n * dtype.itemsize
        yield _row(
            "state step", f"{heads}x{head_dim}x{most}", f"N = {n}", 1 - n / most, batch, took,
            moved, x,
        )  # fmt: skip


def _copies(size: int, machine: Machine) -> int:
    return min(_MOST_COPIES, max(2, -(-4 * machine.cache // size)))


def _sparse(x: Tensor, rows: list[Tensor], options: dict[str, Any]) -> Run:
    return lambda copy: sparse_gemv(x, rows[copy], **options)


def _dense(x: Tensor, weights: list[Tensor], gated: bool) -> Run:
    def run(copy: int) -> Tensor:
        y = F.linear(x, weights[copy])
        if not gated:
            return y
        gate, up = y.chunk(2, dim=-1)
        return F.silu(gate) * up

    return run


def _kept(x: Tensor, rule: dict[str, Any]) -> Tensor:
    score = x.float().abs()
    return naive.keep_best(score, rule["k"]) if "k" in rule else score >= rule["threshold"]


def _row(
    kernel: str, shape: str, choice: str, sparsity: float, batch: int,
    took: Mapping[str, np.ndarray], moved: int, like: Tensor,
) -> dict[str, Any]:  # fmt: skip
    mine, dense = took[choice], took["dense"]
    milliseconds = float(np.median(1e3 * mine))
    device, dtype, _ = setting(like)
    return {
        "kernel": kernel,
        "shape": shape,
        "choice": choice,
        "sparsity": round(sparsity, 3),
        "batch": batch,
        "dtype": dtype,
        "ms": milliseconds,
        "dense_ms": float(np.median(1e3 * dense)),
        "ratio": float(np.median(dense / mine)),
        "gb_per_s": moved / milliseconds / 1e6,
        "device": device,
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def main() -> None:
    """Time everything, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--seconds", type=float, default=0.1, help="per comparison")
    asked = parser.parse_args()
    machine = machine_of(torch.device("cuda"))
    print(f"a plain sum reads {machine.bandwidth / 1e9:.0f} GB/s")
    table = []
    with torch.inference_mode():
        for model, maps in LAYERS.items():
            table += [{"model": model, **row} for row in map_rows(maps, machine, asked.seconds)]
        table += [{"model": "Mamba2-1.3B", **row} for row in state_rows(machine, asked.seconds)]
    frame = pd.DataFrame(table)
    with replacing(asked.out) as path:
        frame.to_csv(path, index=False, lineterminator="\n", float_format="%.5g")
    print(frame.drop(columns=["device", "torch", "triton"]).round(4).to_string(index=False))


if __name__ == "__main__":
    main()
