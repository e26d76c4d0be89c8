"""Compile every Triton kernel for a GPU that need not be there, and record what it takes.

    python -m keepset.kernels.compile                       all; a few minutes on one core
    python -m keepset.kernels.compile --match qwen --out registers.csv

What is compiled is what the host code launches: each case calls a public function on tensors of
the meta device while its launches are recorded (`keepset.kernels.launch.Recording`), and each
launch is specialised as Triton would specialise it. Registers and stack are read from the binary
by cuobjdump where there is one; none of these kernels has a stack of its own, so stack is what
did not fit into registers. No time is measured here.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keepset.files.store import replacing
from keepset.kernels.launch import Launch, Recording, check
from keepset.kernels.triton_ffn import shared_set_decode, sparse_decode
from keepset.kernels.triton_gemv import sparse_gemv
from keepset.kernels.triton_prefill import compacted_prefill, shared_set_ffn
from keepset.kernels.triton_state import new_state, state_step
from keepset.kernels.triton_topk import window_topk
from keepset.kernels.weights import FfnWeights

# isort: split
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGET = GPUTarget("cuda", 90, 32)
_TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.int8: "i8", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A call to compile the kernels of: a model's shape, an operation, and the call itself."""

    model: str
    operation: str
    dtype: torch.dtype
    call: Callable[[], object]


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _ffn(n: int, d: int, act: str, gated: bool, biases: bool, dtype: torch.dtype) -> FfnWeights:
    def bias(length: int) -> Tensor | None:
        return _meta(length, dtype=dtype) if biases else None

    matrix = _meta(n, d, dtype=dtype)
    return FfnWeights(
        matrix, matrix, matrix if gated else None, act, bias(n), bias(n) if gated else None, bias(d)
    )


def _ffn_cases(model: str, ffn: FfnWeights) -> Iterator[Case]:
    dtype, n, d = ffn.up.dtype, ffn.n, ffn.d
    few = _meta(n // 10, dtype=torch.int32)
    norms = _meta(n, dtype=torch.float32)
    for rows in (1, 16):
        x = _meta(rows, d, dtype=dtype)
        calls: dict[str, Callable[[], object]] = {
            "decode threshold": partial(sparse_decode, x, ffn, threshold=0.1),
            "decode top-k": partial(sparse_decode, x, ffn, k=n // 10, norms=norms),
            "decode shared set": partial(shared_set_decode, x, ffn, few),
        }
        if ffn.gate is not None:
            calls["decode by gate"] = partial(sparse_decode, x, ffn, threshold=0.1, choose="gate")
        for name, call in calls.items():
            yield Case(model, f"{name}, {rows} rows", dtype, call)
    for tokens in (64, 2048):
        call = partial(shared_set_ffn, _meta(tokens, d, dtype=dtype), ffn, few)
        yield Case(model, f"shared set, {tokens} tokens", dtype, call)
    many = _meta(131_072, d, dtype=dtype)
    yield Case(model, "compacted prefill", dtype, lambda: compacted_prefill(many, ffn))
    h = _meta(2048, n, dtype=dtype)
    yield Case(model, "window top-k", dtype, lambda: window_topk(h, n // 10, window=128))


def _gemv_cases(model: str, ffn: FfnWeights, qkv: int) -> Iterator[Case]:
    """Every linear map of a decoder layer; `qkv`: outputs of query, key and value together."""
    dtype, n, d, biased = ffn.up.dtype, ffn.n, ffn.d, ffn.up_bias is not None
    n_up = n if ffn.gate is None else 2 * n
    up = {"act": ffn.act, "gated": ffn.gate is not None}
    maps: dict[str, tuple[int, int, dict[str, Any]]] = {
        "query, key, value": (d, qkv, {}),
        "attention output": (d, d, {}),
        "gate and up" if ffn.gate is not None else "up": (d, n_up, up),
        "down": (n, d, {}),
    }
    for rows in (1, 16):
        for name, (n_in, outs, options) in maps.items():
            x, weight = _meta(rows, n_in, dtype=dtype), _meta(n_in, outs, dtype=dtype)
            call = partial(
                sparse_gemv, x, weight, _meta(outs, dtype=dtype) if biased else None, **options
            )
            norms = _meta(n_in, dtype=torch.float32)
            choices: dict[str, dict[str, Any]] = {"threshold": {"threshold": 0.1}}
            if name == "down":
                mask = _meta(rows, n_in, dtype=torch.bool)
                choices |= {
                    "threshold on impact": {"threshold": 0.1, "norms": norms},
                    "top-k": {"k": n_in // 10},
                    "marks": {"keep": mask},
                    "shared set": {"keep": _meta(n_in // 10, dtype=torch.int32)},
                }
            for choice, given in choices.items():
                yield Case(model, f"{name}, {choice}, {rows} rows", dtype, partial(call, **given))


def _state_cases(model: str, heads: int, head_dim: int) -> Iterator[Case]:
    batch, activations = 64, torch.bfloat16
    x = _meta(batch, heads, head_dim, dtype=activations)
    dt, per_head = _meta(batch, heads, dtype=activations), _meta(heads, dtype=torch.float32)
    channels = _meta(batch, 1, 128, dtype=activations)

    def case(label: str, state: Tensor, bc: Tensor, **by_group: Any) -> Case:
        vectors: dict[str, Any] = {"D": per_head, "dt_bias": per_head, "dt_softplus": True}
        call = partial(state_step, state, x, dt, per_head, bc, bc, **vectors, **by_group)
        return Case(model, f"{label}, N = {state.shape[-1]}", state.dtype, call)

    for dtype in (torch.float32, torch.bfloat16):
        for n in (128, 64, 38, 13):
            state = new_state(batch, heads, head_dim, n, dtype=dtype, device="meta")
            yield case("state step", state, channels[..., :n].contiguous())
        n = 38
        state = new_state(batch, heads, head_dim, n, dtype=dtype, device="meta")
        kept, index = _meta(1, dtype=torch.int32), _meta(1, n, dtype=torch.int32)
        yield case("state step by index", state, channels, kept=kept, index=index)
        # As transformers lays it out: the channels of one number of the head side by side.
        state = _meta(batch, heads, head_dim, n, dtype=dtype)
        yield case("state step, usual layout", state, channels[..., :n].contiguous())


def cases() -> Iterator[Case]:
    """Every public operation at the shapes of the models that the study speaks of."""
    bf16 = torch.bfloat16
    qwen = _ffn(8960, 1536, "silu", True, False, bf16)
    opt = _ffn(10240, 2560, "relu", False, True, torch.float16)
    for model, ffn, qkv in (("Qwen2.5-1.5B", qwen, 1536 + 2 * 256), ("OPT-2.7B", opt, 3 * 2560)):
        yield from _ffn_cases(model, ffn)
        yield from _gemv_cases(model, ffn, qkv)
    sparse = _ffn(5632, 2048, "relu", True, False, bf16)
    x = _meta(131_072, 2048, dtype=bf16)
    yield Case("L1-trained 2B", "compacted prefill", bf16, lambda: compacted_prefill(x, sparse))
    yield from _state_cases("Mamba2-1.3B", heads=64, head_dim=64)


def source(launch: Launch) -> ASTSource:
    """A launch as Triton's compiler takes it, specialised as a real launch would be.

    Integers that are 1 become constants, and those and the pointers that 16 divides say so.
    """
    names = launch.kernel.arg_names
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    values = dict(zip(names, launch.arguments, strict=False)) | launch.constants
    for place, name in enumerate(names):
        value = values[name]
        if isinstance(value, Tensor):
            signature[name] = f"*{_TYPES[value.dtype]}"
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif name in launch.constants or value is None or (value == 1 and isinstance(value, int)):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def compiled(launch: Launch) -> Any:
    """Compile one launch for `TARGET`.

    Returns:
        Triton's compiled kernel: `asm` holds "ptx" and "cubin", `metadata` the shared memory.

    Raises:
        KernelError: the kernels are interpreted in this process.
    """
    check(
        isinstance(launch.kernel, triton.JITFunction),
        "kernels are interpreted here: run this without TRITON_INTERPRET",
    )
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    return triton.compile(source(launch), target=TARGET, options=options)


def resources(cubin: bytes) -> dict[str, int | None]:
    """Registers per thread and stack bytes of a binary; None where there is no cuobjdump."""
    tool = triton.knobs.nvidia.cuobjdump.path
    if not os.access(tool, os.X_OK):
        return {"registers": None, "stack_bytes": None}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    numbers = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    check(numbers is not None, f"cuobjdump said nothing of registers: {usage!r}")
    assert numbers is not None
    return {"registers": int(numbers[1]), "stack_bytes": int(numbers[2])}


def compiled_rows(chosen: Iterable[Case]) -> Iterator[dict[str, object]]:
    """Compile the kernels of each case, equal ones once, and yield a row for each."""
    seen = set()
    for case in chosen:
        with Recording() as recording:
            case.call()
        for step in recording.launches:
            key = source(step).hash(), step.num_warps, step.num_stages
            if key in seen:
                continue
            seen.add(key)
            kernel = compiled(step)
            yield {
                "model": case.model,
                "operation": case.operation,
                "dtype": str(case.dtype).removeprefix("torch."),
                "kernel": step.kernel.__name__.lstrip("_"),
                "programs": "x".join(map(str, step.grid)),
                "warps": step.num_warps,
                "stages": step.num_stages,
                **resources(kernel.asm["cubin"]),
                "shared_bytes": kernel.metadata.shared,
                "target": f"sm_{TARGET.arch}",
                "triton": triton.__version__,
            }


def main(arguments: list[str] | None = None) -> int:
    """Compile, print, and write the table if asked."""
    parser = argparse.ArgumentParser(description="Compile the Triton kernels ahead of time.")
    parser.add_argument("--match", default="", help="only cases whose model or operation has it")
    parser.add_argument("--out", type=Path, help="a CSV file to write")
    options = parser.parse_args(arguments)
    match = options.match.lower()
    chosen = [case for case in cases() if match in f"{case.model} {case.operation}".lower()]
    check(bool(chosen), f"no case matches {options.match!r}")
    rows = []
    for row in compiled_rows(chosen):
        rows.append(row)
        print(*row.values(), sep=", ", flush=True)
    if options.out is not None:
        with replacing(options.out) as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
